//! Shares an interface between several XDP programs: attaches a root program, lists its entries,
//! and removes it.
//!
//! ```text
//! root attach --interface eth0... [--path /sys/fs/bpf/katran_root] [--entries 3] [--mode auto]
//! root show [--path ...]
//! root remove [--path ...]
//! ```
//! `attach` ends at once: the root program stays pinned until `remove`. Run again, it attaches
//! where the root program is missing, for example after an interface was created again. A balancer
//! joins with `katran run --shared /sys/fs/bpf/katran_root --position 2`.

mod common;

use std::process::ExitCode;

use clap::Parser;
use common::root;

/// Share an interface between several XDP programs.
#[derive(Parser)]
#[command(max_term_width = 80)]
struct Arguments {
    #[command(subcommand)]
    root: root::Arguments,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    common::log();
    common::exit("root", root::run(arguments.root))
}
