//! Instructions per packet, counted by callgrind: the same on a quiet machine and a noisy one.
//! `perf/instructions.sh` runs this and compares it with `perf/benches/hit_path.baseline`.
#![expect(
    missing_docs,
    unused_qualifications,
    clippy::expect_used,
    reason = "a benchmark made by macros"
)]

use std::hint::black_box;

use gungraun::{library_benchmark, library_benchmark_group, main};
use perf::{Case, Prepared};

fn prepare(case: Case) -> Prepared {
    case.prepare().expect("the case forwards its packets")
}

#[library_benchmark]
#[bench::local(args = (Case::Local), setup = prepare)]
#[bench::encap(args = (Case::Encap), setup = prepare)]
#[bench::decap(args = (Case::Decap), setup = prepare)]
#[bench::new_flow(args = (Case::NewFlow), setup = prepare)]
fn hit_path(mut prepared: Prepared) -> Prepared {
    prepared.run();
    black_box(prepared)
}

library_benchmark_group!(name = engine, benchmarks = hit_path);
main!(library_benchmark_groups = engine);
