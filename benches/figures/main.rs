//! Draws the figures of docs/performance.md and docs/embedding.md. It measures rings itself; the
//! packet path, the flow tables' hit rates and the effect of their sizes come from files that the
//! benches `packet_path` (with `--peer`), `hit_rate` and `table_size` have left in the target
//! directory. A figure without data is not drawn, and makes the exit status 1, except the packet
//! path's, whose data needs an object file of Katran's.
//!
//! cargo bench --bench figures            # seconds; into docs/img
//! cargo bench --bench figures -- --quick # into figures/ of the target directory

#![allow(clippy::unwrap_used)]

mod chart;
#[path = "../common/mod.rs"]
mod common;
mod measured;
mod rings;
mod simulated;

use std::env;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::chart::Figure;
use crate::common::results_file;

fn main() -> ExitCode {
    let has = |wanted| env::args().any(|argument| argument == wanted);
    let quick = has("--quick") || !has("--bench");
    let directory = if quick {
        results_file("")
    } else {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/img")
    };
    fs::create_dir_all(&directory).unwrap();
    let (rounds, leavers) = if quick { (3, 2) } else { (31, 20) };
    let figures: [(&str, Result<Figure, String>); 6] = [
        ("packet-path", measured::packet_path(quick)),
        ("hit-rate", measured::hit_rate()),
        ("table-size", simulated::table_size(quick)),
        ("ring-build", Ok(rings::build_time(rounds))),
        ("ring-shares", Ok(rings::shares())),
        ("ring-moved", Ok(rings::moved(leavers))),
    ];
    let mut missing = false;
    for (name, figure) in figures {
        if name == "packet-path" && !measured::is_compared() {
            println!(
                "{name} stays: cargo bench --bench packet_path -- --peer OBJECT makes its data"
            );
            continue;
        }
        let path = directory.join(name).with_extension("svg");
        match figure {
            Ok(figure) => draw(&figure, &path),
            Err(error) => {
                eprintln!("figures: {name} is not drawn: {error}");
                missing = true;
            }
        }
    }
    if missing && !quick {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn draw(figure: &Figure, path: &PathBuf) {
    figure.draw(path).unwrap();
    println!("{}: {}", path.display(), figure.title);
}
