//! The rings against the recorded ones, and their properties.

use std::path::Path;

use katran::Endpoint;
use katran::HashFunction;
use katran::Ring;
use katran::RingSize;
use serde_json::Value;

fn vectors(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// FNV-1a, 64 bit, over the slots as little-endian 32-bit words.
fn fnv1a64(slots: &[u16]) -> u64 {
    let bytes = slots.iter().flat_map(|&slot| u32::from(slot).to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The weight of endpoint `i`, by the expression in the recorded row.
fn recorded_weight(expression: &str, i: u32) -> u32 {
    match expression {
        "i" => i,
        "1 + ((i-1)*37) % 100" => 1 + (i - 1) * 37 % 100,
        constant => constant.parse().unwrap(),
    }
}

#[test]
fn rings_are_the_recorded_ones() {
    let vectors = vectors("rings.json");
    let rows = vectors.as_array().unwrap();
    assert_eq!(rows.len(), 26);
    for row in rows {
        let function = match row["function"].as_str().unwrap() {
            "Maglev" => HashFunction::Maglev,
            "MaglevV2" => HashFunction::MaglevV2,
            other => panic!("{other}"),
        };
        let name = format!("{}, {function}", row["name"]);
        let size = u32::try_from(row["ring_size"].as_u64().unwrap()).unwrap();
        let count = u16::try_from(row["endpoints"]["count"].as_u64().unwrap()).unwrap();
        let weights = row["endpoints"]["weights"].as_str().unwrap();
        let endpoints: Vec<Endpoint> = (1..=count)
            .map(|i| {
                let hash = u64::from(i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                Endpoint::with_hash(i, hash, recorded_weight(weights, u32::from(i)))
            })
            .collect();
        let ring = Ring::build(function, RingSize::try_from(size).unwrap(), &endpoints).unwrap();
        assert_eq!(ring.len(), size as usize, "{name}");
        let first: Vec<u64> = row["first"].as_array().unwrap().iter().map(|slot| slot.as_u64().unwrap()).collect();
        let slots: Vec<u64> = ring.slots().iter().map(|&slot| u64::from(slot)).collect();
        assert_eq!(slots[..first.len()], first, "{name}");
        assert_eq!(
            format!("{:016x}", fnv1a64(ring.slots())),
            row["fnv1a64"].as_str().unwrap(),
            "{name}"
        );
    }
}
