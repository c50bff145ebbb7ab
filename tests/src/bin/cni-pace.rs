//! `make bench`: ADD, DEL and GC of weir-cni against the stock chain of plugins, one JSON object. What is
//! over its bound fails it, unless told otherwise.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

use std::process::ExitCode;

use kit::{Purpose, cleanup_on_signal};
use serde_json::{Value, json};
use tests::{Filled, Pace, Size, Times, missed, ms};

/// The figures of the CNI issue are for this much.
const FULL: Size = Size { alone: 200, at_once: 50, filled: 500 };

/// Figures are wanted whatever they are.
const NO_FAIL: &str = "--no-fail";

/// What bounds are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bounds {
    Kept,
    Told,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let bounds = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => Bounds::Kept,
        [NO_FAIL] => Bounds::Told,
        _ => {
            eprintln!("usage: cni-pace [{NO_FAIL}]");
            return ExitCode::FAILURE;
        }
    };
    match measure(FULL) {
        Ok((figures, missed)) => {
            println!("{figures}");
            if missed.is_empty() {
                return ExitCode::SUCCESS;
            }
            eprintln!("cni-pace: over their bounds: {}", missed.join(", "));
            match bounds {
                Bounds::Kept => ExitCode::FAILURE,
                Bounds::Told => ExitCode::SUCCESS,
            }
        }
        Err(error) => {
            eprintln!("cni-pace: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The figures, and which of them are over their bounds.
fn measure(size: Size) -> anyhow::Result<(Value, Vec<&'static str>)> {
    cleanup_on_signal()?;
    let mut pace = Pace::new(Purpose::Test)?;
    eprintln!("cni-pace: {} one at a time", size.alone);
    let [add, del] = pace.alone(size.alone)?;
    eprintln!("cni-pace: the stock chain");
    let stock = pace.stock(size.alone.min(50))?;
    eprintln!("cni-pace: {} at once", size.at_once);
    let [adds, dels] = pace.at_once(size.at_once)?;
    eprintln!("cni-pace: {} on the node", size.filled);
    let Filled { first, last, kilobytes: [netplugin, vrouterd], gc } = pace.filled(size.filled)?;
    let ratio = last.median().as_secs_f64() / first.median().as_secs_f64();
    let chain = |[add, del]: [Times; 2]| json!({ "add": add.json(), "del": del.json() });
    let bounds = [
        ("add_p50_ms", ms(add.median()), 25.0),
        ("add_p99_ms", ms(add.permille(990)), 100.0),
        ("del_p50_ms", ms(del.median()), 15.0),
        ("last_to_first", ratio, 1.5),
        ("gc_ms", ms(gc), 2000.0),
    ];
    let missed = missed(&bounds);
    let asked: serde_json::Map<String, Value> =
        bounds.iter().map(|(name, _, asked)| ((*name).to_owned(), json!(asked))).collect();
    let figures = json!({
        "asked": asked, "missed": missed,
        "add": add.json(), "del": del.json(),
        "stock_bridge_tuning_bandwidth": stock.map(chain),
        "at_once": { "count": size.at_once, "adds_ms": ms(adds), "dels_ms": ms(dels) },
        "filled": { "count": size.filled, "first_add": first.json(), "last_add": last.json(),
            "last_to_first": (ratio * 100.0).round() / 100.0, "netplugin_kb": netplugin,
            "vrouterd_kb": vrouterd, "gc_ms": ms(gc) },
    });
    Ok((figures, missed))
}
