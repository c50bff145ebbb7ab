//! Tables: a heading row, cells padded to the widest of their column plus two blanks, numbers to
//! the right.

/// Which side of its column a cell is set at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Left,
    Right,
}

/// Sets a table. Every row has one cell per column.
pub(crate) fn render(columns: &[(&str, Side)], rows: &[Vec<String>]) -> String {
    let heading: Vec<String> = columns.iter().map(|(name, _)| (*name).to_owned()).collect();
    let lines: Vec<&Vec<String>> = std::iter::once(&heading).chain(rows).collect();
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns.len()).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for line in lines {
        let cells =
            line.iter().zip(columns).zip(&widths).map(|((cell, (_, side)), width)| match side {
                Side::Left => format!("{cell:<width$}"),
                Side::Right => format!("{cell:>width$}"),
            });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Side, render};

    #[test]
    fn names_stand_left_and_numbers_right() {
        let columns = [("REASON", Side::Left), ("PACKETS", Side::Right)];
        let row = |a: &str, b: &str| vec![a.to_owned(), b.to_owned()];
        assert_eq!(
            render(&columns, &[row("policy-deny", "7"), row("no-route", "12345678")]),
            "REASON        PACKETS\npolicy-deny         7\nno-route     12345678\n"
        );
        assert_eq!(render(&columns, &[]), "REASON  PACKETS\n");
    }
}
