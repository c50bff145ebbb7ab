//! `make bench`: ADD, DEL and GC of weir-cni against the stock chain of plugins, one JSON object.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

use std::process::ExitCode;

use kit::{Purpose, cleanup_on_signal};
use serde_json::{Value, json};
use tests::{Filled, Pace, Size, Times, ms};

/// The figures of the CNI issue are for this much.
const FULL: Size = Size { alone: 200, at_once: 50, filled: 500 };

fn main() -> ExitCode {
    match measure(FULL) {
        Ok(figures) => {
            println!("{figures}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("cni-pace: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(size: Size) -> anyhow::Result<Value> {
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
    let missed: Vec<&str> =
        bounds.iter().filter(|(_, seen, asked)| seen > asked).map(|(name, ..)| *name).collect();
    let asked: serde_json::Map<String, Value> =
        bounds.iter().map(|(name, _, asked)| ((*name).to_owned(), json!(asked))).collect();
    Ok(json!({
        "asked": asked, "missed": missed,
        "add": add.json(), "del": del.json(),
        "stock_bridge_tuning_bandwidth": stock.map(chain),
        "at_once": { "count": size.at_once, "adds_ms": ms(adds), "dels_ms": ms(dels) },
        "filled": { "count": size.filled, "first_add": first.json(), "last_add": last.json(),
            "last_to_first": (ratio * 100.0).round() / 100.0, "netplugin_kb": netplugin,
            "vrouterd_kb": vrouterd, "gc_ms": ms(gc) },
    }))
}
