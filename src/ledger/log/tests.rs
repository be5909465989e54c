//! The log against a list: killed before any store, corrupted in any bit, and mutated.

use fastrand::Rng;

use super::super::death;
use super::super::heap::Heap;
use super::*;
use crate::mutate;

/// Writes a list of records, as a snapshot of one record each.
fn create(heap: &Heap, all: &[Vec<u8>]) -> io::Result<Log> {
    Log::create(Box::new(heap.clone()), &|write| snapshot(all, write))
}

fn snapshot(all: &[Vec<u8>], write: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    all.iter().for_each(|record| write(record));
    Ok(())
}

fn read(heap: &Heap) -> Result<(Log, Vec<Vec<u8>>), Unreadable> {
    let mut all = Vec::new();
    let log = Log::open(Box::new(heap.clone()), |record| {
        all.push(record.to_vec());
        Ok(())
    })?;
    Ok((log, all))
}

fn record(rng: &mut Rng) -> Vec<u8> {
    let length = rng.usize(1..200);
    // Many of them look like what a log has between records.
    let mut record = vec![0; length];
    if rng.bool() {
        rng.fill(&mut record);
    }
    record
}

/// Appends to the log as a change does, after making room in either way.
fn write(log: &mut Log, all: &mut Vec<Vec<u8>>, new: &[u8], whole: bool) -> io::Result<()> {
    if !log.fits(new.len()) {
        match whole {
            // A snapshot has less than the records before.
            true => {
                all.drain(..all.len() / 2);
                log.compact(new.len(), &|write| snapshot(all, write))?;
            }
            false => log.grow(new.len())?,
        }
    }
    log.append(new);
    all.push(new.to_vec());
    Ok(())
}

#[test]
fn what_was_appended_is_read() {
    mutate::cases(60, |rng| {
        let heap = Heap::new(8 * (HEAD + 2 * LEAST_HALF));
        let mut all = vec![record(rng)];
        let mut log = create(&heap, &all).unwrap();
        for _ in 0..rng.usize(0..200) {
            let new = record(rng);
            let whole = rng.u32(0..8) != 0;
            write(&mut log, &mut all, &new, whole).unwrap();
            if rng.u32(0..30) == 0 {
                // Another process continues.
                let (after, read) = read(&heap.found()).unwrap();
                assert_eq!(read, all);
                assert_eq!((after.at, after.count), (log.at, log.count));
            }
        }
        assert_eq!(read(&heap.found()).unwrap().1, all);
    });
}

/// Killed before any store, an append is complete or absent, whatever it takes.
#[test]
fn an_append_is_there_whole_or_not_at_all() {
    mutate::cases(12, |rng| {
        let heap = Heap::new(8 * (HEAD + 2 * LEAST_HALF));
        let mut all = vec![record(rng)];
        let mut log = create(&heap, &all).unwrap();
        for _ in 0..rng.usize(0..60) {
            let new = record(rng);
            write(&mut log, &mut all, &new, true).unwrap();
        }
        for _ in 0..10 {
            let (new, whole) = (record(rng), rng.bool());
            let mut stores = 0;
            let (mut before, mut after) = (0, 0);
            loop {
                let left = heap.found();
                let (mut log, mut records) = read(&left).unwrap();
                let kept = records.clone();
                let lived = death::after(stores, || {
                    write(&mut log, &mut records, &new, whole).unwrap();
                });
                let found = read(&left.found()).unwrap().1;
                let mut made = kept.clone();
                made.push(new.clone());
                // After a snapshot, which has less.
                let halved = kept[kept.len() / 2..].to_vec();
                let mut halved_made = halved.clone();
                halved_made.push(new.clone());
                match lived {
                    None if found == kept || found == halved => before += 1,
                    None => {
                        assert!(found == made || found == halved_made, "{stores}");
                        after += 1;
                    }
                    Some(()) => {
                        assert_eq!(found, records);
                        break;
                    }
                }
                stores += 1;
            }
            // Only the word that marks the log's end follows the record.
            assert!(before > 2 && after <= 1, "{before} {after}");
            write(&mut log, &mut all, &new, true).unwrap();
        }
    });
}

#[test]
fn a_refusal_of_memory_leaves_the_log_as_it_was() {
    let bytes = 8 * (HEAD + 2 * LEAST_HALF);
    let heap = Heap::new(bytes).limited(bytes);
    let all = vec![vec![7; 400]];
    let mut log = create(&heap, &all).unwrap();
    let new = vec![1; 2000];
    assert!(!log.fits(new.len()));
    assert!(log.grow(new.len()).is_err());
    assert!(
        log.compact(new.len(), &|write| snapshot(&all, write))
            .is_err()
    );
    assert_eq!(read(&heap.found()).unwrap().1, all);
    log.append(&[1]);
    assert_eq!(read(&heap.found()).unwrap().1, [all[0].clone(), vec![1]]);
}

/// Nothing of it is read, in either ground.
#[test]
fn a_snapshot_that_ends_too_early_is_none() {
    let cut = |of: &[Vec<u8>], write: &mut dyn FnMut(&[u8])| {
        snapshot(of, write)?;
        Err(io::ErrorKind::InvalidData.into())
    };
    for bytes in [16, 8 * (HEAD + 2 * LEAST_HALF)] {
        let heap = Heap::new(bytes);
        let created = Log::create(Box::new(heap.clone()), &|write| cut(&[vec![7]], write));
        assert!(created.is_err());
        assert_eq!(read(&heap.found()).err(), Some(Unreadable::NoLedger));
    }
    // In the other half, or in a larger ground.
    for length in [100, 4000] {
        let heap = Heap::new(8 * (HEAD + 2 * LEAST_HALF));
        let mut log = create(&heap, &[vec![1; 20]]).unwrap();
        log.append(&[2]);
        let compacted = log.compact(9, &|write| cut(&[vec![3; length]], write));
        assert!(compacted.is_err());
        log.append(&[4]);
        let found = read(&heap.found()).unwrap().1;
        assert_eq!(found, [vec![1; 20], vec![2], vec![4]]);
    }
}

/// Flips every bit in use: the damage is found, or makes no difference.
#[test]
fn a_bit_that_has_turned_over_is_found() {
    let heap = Heap::new(8 * (HEAD + 2 * LEAST_HALF));
    let all: Vec<Vec<u8>> = (1..8)
        .map(|length| vec![length; 5 * length as usize])
        .collect();
    let mut log = create(&heap, &all).unwrap();
    log.compact(0, &|write| snapshot(&all, write)).unwrap();
    log.append(&[9; 9]);
    let good = heap.found().bytes();
    let mut all = all;
    all.push(vec![9; 9]);
    let half = 8 * half_range(LEAST_HALF, 1).start;
    let records = half..half + 8 * log.at + 8;
    let (mut found, mut same) = (0, 0);
    for byte in (0..8 * HEAD).chain(records.clone()) {
        for bit in 0..8 {
            let mut bytes = good.clone();
            bytes[byte] ^= 1 << bit;
            match read(&Heap::of_bytes(&bytes)) {
                Ok((_, read)) => {
                    assert_eq!(read, all, "bit {bit} of byte {byte}");
                    // Copies, and words that only help to find damage.
                    assert!(byte < 8 * HEAD);
                    same += 1;
                }
                Err(_) => found += 1,
            }
        }
    }
    assert_eq!(found, 8 * (2 * 8 + records.len()), "and {same}");
}

#[test]
fn a_log_that_has_lost_its_end_is_no_whole_one() {
    let heap = Heap::new(8 * (HEAD + 2 * LEAST_HALF));
    let mut log = create(&heap, &[vec![1; 20]]).unwrap();
    let before = log.at;
    log.append(&[2; 20]);
    let mut bytes = heap.found().bytes();
    bytes[8 * (HEAD + before)..][..8].fill(0);
    let error = read(&Heap::of_bytes(&bytes)).err();
    assert_eq!(
        error,
        Some(Unreadable::Spoiled("its last records are missing"))
    );
}

#[test]
fn other_layouts_and_other_things_are_told() {
    let heap = Heap::new(8 * (HEAD + 2 * LEAST_HALF));
    assert_eq!(read(&heap).err(), Some(Unreadable::NoLedger));
    assert_eq!(read(&Heap::new(0)).err(), Some(Unreadable::NoLedger));
    create(&heap, &[vec![1]]).unwrap();
    let mut bytes = heap.found().bytes();
    bytes[4] = 9;
    let error = read(&Heap::of_bytes(&bytes)).err();
    assert_eq!(error, Some(Unreadable::Layout(9)));
}

#[test]
fn a_mutated_log_is_read_or_refused() {
    mutate::cases(3000, |rng| {
        let heap = Heap::new(8 * (HEAD + 2 * LEAST_HALF));
        let mut all = vec![record(rng)];
        let mut log = create(&heap, &all).unwrap();
        for _ in 0..rng.usize(0..12) {
            let new = record(rng);
            write(&mut log, &mut all, &new, true).unwrap();
        }
        let mut bytes = heap.found().bytes();
        mutate::bytes(rng, &mut bytes);
        bytes.resize(bytes.len() / 8 * 8, 0);
        if let Ok((_, read)) = read(&Heap::of_bytes(&bytes)) {
            assert_eq!(read, all);
        }
    });
}
