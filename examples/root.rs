//! An interface for several XDP programs: puts a root program on it, shows what its entries hold, and
//! takes it off again.
//!
//! ```text
//! root attach --interface eth0... [--path /sys/fs/bpf/katran_root] [--entries 3] [--mode auto]
//! root show [--path ...]
//! root remove [--path ...]
//! ```
//! `attach` ends at once: the root stays, pinned, until `remove`. If it is there already it is attached where it is not,
//! as when an interface was removed and made again. A balancer joins it with
//! `katran run --shared /sys/fs/bpf/katran_root --position 2`.

mod common;

use std::process::ExitCode;

use clap::Parser;
use common::root;

/// A root program for an interface that several XDP programs share.
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
