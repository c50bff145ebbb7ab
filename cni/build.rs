//! Leaves debug information out of the plugin: it is copied to every node and loaded for every
//! operation. Symbols stay, for the names in a crash.

fn main() {
    println!("cargo:rustc-link-arg-bins=-Wl,--strip-debug");
    println!("cargo:rerun-if-changed=build.rs");
}
