//! Which processes hold a BPF program, by their descriptors in `/proc` (proc(5)).

use std::fs;
use std::path::Path;

use super::fdinfo::FdInfo;

/// What the descriptor of a program leads to.
const PROGRAM: &str = "anon_inode:bpf-prog";

/// The ids of processes that hold the program with this id, among those whose descriptors the
/// calling process may read.
pub(crate) fn of_program(id: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = processes.filter_map(|entry| {
        let process = entry.file_name().to_str()?.parse().ok()?;
        holds(&entry.path(), id).then_some(process)
    });
    let mut found: Vec<u32> = processes.collect();
    found.sort_unstable();
    found
}

fn holds(process: &Path, program: u32) -> bool {
    let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten();
    let mut programs = descriptors.flatten().filter(|entry| {
        let target = fs::read_link(entry.path());
        target.is_ok_and(|target| target == Path::new(PROGRAM))
    });
    programs.any(|entry| {
        let info = FdInfo::read(&process.join("fdinfo").join(entry.file_name()));
        info.is_ok_and(|info| info.number("prog_id").ok() == Some(program))
    })
}
