//! Compiles the tc programs with clang. Nothing prebuilt is shipped: clang is needed by the crate
//! `afxdp` anyway.
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCE: &str = "src/bpf/offload.bpf.c";
const INCLUDED: [&str; 3] = ["src/bpf/flows.bpf.h", "src/bpf/tunnel.bpf.h", "src/bpf/uplink.bpf.h"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={SOURCE}");
    for included in INCLUDED {
        println!("cargo:rerun-if-changed={included}");
    }
    println!("cargo:rerun-if-env-changed=CLANG");
    let clang = std::env::var("CLANG").unwrap_or_else(|_| "clang".to_owned());
    let object = PathBuf::from(std::env::var("OUT_DIR")?).join("offload.bpf.o");
    // Set by libbpf-sys (`links = "bpf"`): the directory that holds bpf/bpf_helpers.h.
    let libbpf = std::env::var("DEP_BPF_INCLUDE")?;
    let mut command = Command::new(&clang);
    command.args(["-target", "bpf", "-O2", "-g", "-mcpu=v3", "-Wall", "-Werror", "-c", SOURCE]);
    command.arg("-I").arg(libbpf).arg("-o").arg(&object);
    // Debian keeps asm/types.h here; `-target bpf` does not look for it.
    let arch = std::env::var("CARGO_CFG_TARGET_ARCH")?;
    let multiarch = format!("/usr/include/{arch}-linux-gnu");
    if Path::new(&multiarch).is_dir() {
        command.arg("-I").arg(multiarch);
    }
    let status = command.status().map_err(|error| {
        format!(
            "{clang}: {error}. The BPF programs need a C compiler: \
             apt-get install clang libelf-dev zlib1g-dev linux-libc-dev m4 pkg-config"
        )
    })?;
    if !status.success() {
        return Err(format!("{clang} could not compile {SOURCE} ({status})").into());
    }
    Ok(())
}
