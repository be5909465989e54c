//! Events as pcap files (draft-ietf-opsawg-pcap), one for each kind. A packet is written whole or,
//! if the disk is full, not at all, so that a file can be read at any time.

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::UNIX_EPOCH;

use pcap_file::DataLink;
use pcap_file::Endianness;
use pcap_file::PcapError;
use pcap_file::TsResolution;
use pcap_file::pcap::PcapHeader;
use pcap_file::pcap::PcapPacket;
use pcap_file::pcap::PcapWriter;

use super::Event;
use super::EventKind;
use crate::error::Error;
use crate::error::Result;

const HEADER_BYTES: usize = 24;

/// A file for each kind of event.
pub(super) struct Files(BTreeMap<EventKind, Capture>);

impl Files {
    /// Makes `KIND.pcap` for each kind in a directory, or none if a file exists.
    pub(super) fn create(directory: &Path, kinds: &[EventKind], snap_length: u32) -> Result<Self> {
        let mut files = Self(BTreeMap::new());
        for kind in kinds {
            let path = directory.join(format!("{kind}.pcap"));
            if files.0.contains_key(kind) {
                continue;
            }
            match Capture::create(&path, snap_length) {
                Ok(file) => drop(files.0.insert(*kind, file)),
                Err(error) => {
                    for path in files.paths() {
                        remove_empty(&path);
                    }
                    return Err(file_error("make", &path, error));
                }
            }
        }
        Ok(files)
    }

    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.0.values().map(|file| file.path.clone()).collect()
    }

    pub(super) fn write(&mut self, event: &Event) -> Result<()> {
        let Some(file) = self.0.get_mut(&event.kind) else {
            return Ok(());
        };
        file.write(event)
            .map_err(|error| file_error("write to", &file.path, error))
    }
}

/// Removes a file that was just made, unless something has been written to it. If that fails, an
/// empty capture stays.
pub(super) fn remove_empty(path: &Path) {
    if fs::metadata(path).is_ok_and(|of| of.len() <= HEADER_BYTES as u64) {
        let _ = fs::remove_file(path);
    }
}

struct Capture {
    path: PathBuf,
    file: File,
    snap_length: u32,
    /// Where the next packet goes: the end of the last whole one.
    end: u64,
}

impl Capture {
    fn create(path: &Path, snap_length: u32) -> io::Result<Self> {
        let mut capture = Self {
            path: path.to_owned(),
            file: File::create_new(path)?,
            snap_length,
            end: 0,
        };
        let header = capture.bytes(None).map_err(io::Error::other);
        if let Err(error) = header.and_then(|bytes| capture.append(&bytes)) {
            remove_empty(path);
            return Err(error);
        }
        Ok(capture)
    }

    fn write(&mut self, event: &Event) -> io::Result<()> {
        let since = event.time.duration_since(UNIX_EPOCH);
        let packet = PcapPacket::new(since.unwrap_or(Duration::ZERO), event.length, &event.packet);
        let bytes = self.bytes(Some(&packet)).map_err(io::Error::other)?;
        self.append(&bytes[HEADER_BYTES..])
    }

    /// The file's header, and a packet.
    fn bytes(&self, packet: Option<&PcapPacket<'_>>) -> std::result::Result<Vec<u8>, PcapError> {
        let header = PcapHeader {
            snaplen: self.snap_length,
            datalink: DataLink::ETHERNET,
            ts_resolution: TsResolution::NanoSecond,
            endianness: Endianness::native(),
            ..PcapHeader::default()
        };
        let mut writer = PcapWriter::with_header(Vec::new(), header)?;
        if let Some(packet) = packet {
            writer.write_packet(packet)?;
        }
        Ok(writer.into_writer())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all_at(bytes, self.end) {
            // A part may have been written. If it cannot be cut off, the next packet overwrites it.
            let _ = self.file.set_len(self.end);
            return Err(error);
        }
        self.end += bytes.len() as u64;
        Ok(())
    }
}

fn file_error(operation: &'static str, path: &Path, error: io::Error) -> Error {
    Error::File {
        operation,
        path: path.to_owned(),
        error,
    }
}
