//! Events as pcap files (draft-ietf-opsawg-pcap), one for each kind.

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::UNIX_EPOCH;

use pcap_file::DataLink;
use pcap_file::Endianness;
use pcap_file::TsResolution;
use pcap_file::pcap::PcapHeader;
use pcap_file::pcap::PcapPacket;
use pcap_file::pcap::PcapWriter;

use super::Event;
use super::EventKind;
use crate::Error;
use crate::Result;

/// A file for each kind of event.
pub(super) struct Files(BTreeMap<EventKind, (PathBuf, PcapWriter<File>)>);

impl Files {
    /// Makes `KIND.pcap` for each kind in a directory, or none: files that are there already stay.
    pub(super) fn create(directory: &Path, kinds: &[EventKind], snap_length: u32) -> Result<Self> {
        let mut files = BTreeMap::new();
        for kind in kinds {
            let path = directory.join(format!("{kind}.pcap"));
            if files.contains_key(kind) {
                continue;
            }
            match create(&path, snap_length) {
                Ok(writer) => drop(files.insert(*kind, (path, writer))),
                Err(error) => {
                    for (path, _) in files.values() {
                        // Made a moment ago; if it cannot be removed, it is an empty capture.
                        let _ = fs::remove_file(path);
                    }
                    return Err(file_error("make", &path, error));
                }
            }
        }
        Ok(Self(files))
    }

    pub(super) fn write(&mut self, event: &Event) -> Result<()> {
        let Some((path, writer)) = self.0.get_mut(&event.kind) else {
            return Ok(());
        };
        let since = event.time.duration_since(UNIX_EPOCH);
        let packet = PcapPacket::new(since.unwrap_or(Duration::ZERO), event.length, &event.packet);
        let written = writer.write_packet(&packet).map(drop);
        written.map_err(|error| file_error("write to", path, io::Error::other(error)))
    }
}

fn create(path: &Path, snap_length: u32) -> io::Result<PcapWriter<File>> {
    let header = PcapHeader {
        snaplen: snap_length,
        datalink: DataLink::ETHERNET,
        ts_resolution: TsResolution::NanoSecond,
        endianness: Endianness::native(),
        ..PcapHeader::default()
    };
    // Without a buffer: whoever looks into the file finds whole packets.
    PcapWriter::with_header(File::create_new(path)?, header).map_err(io::Error::other)
}

fn file_error(operation: &'static str, path: &Path, error: io::Error) -> Error {
    Error::File {
        operation,
        path: path.to_owned(),
        error,
    }
}
