//! Tables as Go's `text/tabwriter` sets them with the parameters Contiv gives it (minimum width 0,
//! padding 2 blanks, left aligned): every cell but the last of a row is padded to the widest cell
//! of its column plus 2, the last is never padded.

/// A column's heading and the number of dashes under it. Contiv's dashes are typed by hand and
/// their number differs from the heading's length in places.
pub(crate) type Column = (&'static str, usize);

const PADDING: usize = 2;

/// Widths of the columns, for lines that come one by one.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    widths: Vec<usize>,
    headings: Vec<String>,
    dashes: Vec<String>,
}

impl Setting {
    /// As wide as headings, dashes and these rows need it.
    pub(crate) fn of(columns: &[Column], rows: &[Vec<String>]) -> Self {
        let headings: Vec<String> =
            columns.iter().map(|(heading, _)| (*heading).to_owned()).collect();
        let dashes: Vec<String> = columns.iter().map(|(_, count)| "-".repeat(*count)).collect();
        let lines: Vec<&Vec<String>> = [&headings, &dashes].into_iter().chain(rows).collect();
        let width = |column: usize| {
            lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max()
        };
        let widths = (0..columns.len()).map(|column| width(column).unwrap_or(0)).collect();
        Self { widths, headings, dashes }
    }

    /// Headings and dashes.
    pub(crate) fn heading(&self) -> String {
        set_line(&self.headings, &self.widths) + &set_line(&self.dashes, &self.widths)
    }

    /// One row.
    pub(crate) fn line(&self, cells: &[String]) -> String {
        set_line(cells, &self.widths)
    }
}

/// Sets headings, dashes and rows, each line ended. Rows have one cell per column.
pub(crate) fn render(columns: &[Column], rows: &[Vec<String>]) -> String {
    let setting = Setting::of(columns, rows);
    let lines: Vec<String> = rows.iter().map(|row| setting.line(row)).collect();
    setting.heading() + &lines.concat()
}

fn set_line(cells: &[String], widths: &[usize]) -> String {
    let last = cells.len().saturating_sub(1);
    let padded = cells.iter().zip(widths).take(last);
    let mut line = padded
        .map(|(cell, width)| format!("{cell:<0$}", width + PADDING))
        .collect::<Vec<_>>()
        .concat();
    line.extend(cells.get(last).map(String::as_str));
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::render;

    #[test]
    fn the_widest_of_heading_dashes_and_cells_sets_the_column() {
        let columns = [("Name", 6), ("Subnet", 7), ("Gateway", 7)];
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let rows = [row(["a", "10.1.1.0/24", "10.1.1.254"]), row(["ünïcödé", "", ""])];
        assert_eq!(
            render(&columns, &rows),
            "Name     Subnet       Gateway\n\
             ------   -------      -------\n\
             a        10.1.1.0/24  10.1.1.254\n\
             ünïcödé               \n"
        );
    }

    #[test]
    fn an_empty_list_still_has_its_headings() {
        assert_eq!(
            render(&[("Tenant", 6), ("Policy", 6)], &[]),
            "Tenant  Policy\n------  ------\n"
        );
    }
}
