//! `cargo +nightly fuzz run parse` in `flowtable/`. The first byte chooses the origin, as in
//! `tests/corpus.rs`, which replays what is found here.
#![no_main]

use flowtable::ids::PortId;
use flowtable::key::{Decap, Origin, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, frame)) = bytes.split_first() else { return };
    let decap = if choice % 2 == 0 { Decap::Never } else { Decap::Vxlan };
    let Ok(parsed) = parse(frame, Origin { in_port: PortId::MIN, decap }) else { return };
    let (l3, l4, inner) =
        (usize::from(parsed.l3), usize::from(parsed.l4), usize::from(parsed.inner));
    assert!(inner + 14 <= l3 && l3 <= frame.len() && l4 <= frame.len());
    assert!(l4 == 0 || l4 >= l3 + 20);
    assert_eq!(inner != 0, parsed.key.vni != 0);
    // What the text form says of a key is true of it.
    let spec: flowtable::text::FlowSpec = parsed.key.to_string().parse().expect("a key's own text");
    assert!(spec.matches(&parsed.key));
});
