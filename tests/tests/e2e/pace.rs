//! How fast containers come and go (SCL-1); `target/release/cni-pace` prints the figures themselves.

use std::time::Duration;

use anyhow::{Result, ensure};
use kit::Purpose;
use tests::{Filled, Pace, Size, missed};

use crate::Test;
use crate::shared::sharing;

pub(crate) fn tests() -> Vec<Test> {
    sharing(
        || Pace::new(Purpose::Test),
        &[
            ("scl_1_adds_take_under_300_ms_and_a_del_leaves_no_link_for_a_second", alone),
            ("scl_1_fifty_adds_at_once_succeed_at_20_a_second_and_more", at_once),
            ("scl_1_a_full_node_adds_as_fast_and_is_emptied_by_one_gc", filled),
            ("scl_1_a_figure_over_its_bound_is_named_and_fails_the_bench", bounds),
        ],
    )
}

fn size() -> Size {
    if std::env::var_os("WEIR_SOAK").is_some() {
        Size { alone: 200, at_once: 50, filled: 500 }
    } else {
        Size { alone: 20, at_once: 50, filled: 80 }
    }
}

/// cni-pace fails with these.
fn bounds(_: &mut Pace) -> Result<()> {
    let seen = [("add", 25.0, 25.0), ("del", 15.1, 15.0), ("ratio", f64::NAN, 1.5)];
    ensure!(missed(&seen) == ["del", "ratio"], "{:?}", missed(&seen));
    Ok(())
}

fn alone(pace: &mut Pace) -> Result<()> {
    let [adds, dels] = pace.alone(size().alone)?;
    ensure!(adds.permille(990) <= Duration::from_millis(300), "ADD: {}", adds.json());
    ensure!(dels.permille(990) <= Duration::from_millis(300), "DEL: {}", dels.json());
    Ok(())
}

fn at_once(pace: &mut Pace) -> Result<()> {
    let count = size().at_once;
    let [adds, _] = pace.at_once(count)?;
    let bound = Duration::from_secs(1) * u32::try_from(count)? / 20;
    ensure!(adds <= bound, "{count} ADDs took {adds:?}, {bound:?} are 20 a second");
    Ok(())
}

fn filled(pace: &mut Pace) -> Result<()> {
    let Filled { first, last, gc, .. } = pace.filled(size().filled)?;
    // The fastest of each: a few calls are no distribution, and what else runs here only adds to them.
    let (first, last) = (first.permille(0), last.permille(0));
    ensure!(last <= first * 3 / 2 + Duration::from_millis(20), "{last:?}, at first {first:?}");
    ensure!(gc <= Duration::from_secs(2), "the GC took {gc:?}");
    Ok(())
}
