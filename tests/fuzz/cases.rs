//! Frames from operators' reports (`tests/cases`): the verdict, and what must hold for a frame that
//! leaves. A passed frame must be unchanged.

use std::net::Ipv4Addr;

use katran::Katran;
use katran::State;
use katran::flows::Verdict;
use katran_lab::require_root;
use serde_json::Value;

use crate::common;
use crate::common::mirror;
use crate::pair::hex;
use crate::sound;

struct Case {
    name: String,
    frame: Vec<u8>,
    verdicts: Vec<String>,
    check: Value,
}

fn cases() -> Vec<Case> {
    let json: Value = serde_json::from_str(include_str!("../cases/frames.json")).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    json.as_array()
        .unwrap()
        .iter()
        .map(|case| Case {
            name: text(&case["name"]),
            frame: bytes(&text(&case["in"])),
            verdicts: text(&case["verdict"])
                .split(" or ")
                .map(str::to_owned)
                .collect(),
            check: case["check"].clone(),
        })
        .collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

fn balancer() -> Katran {
    require_root();
    let state = State::from_toml(include_str!("../cases/lb.toml")).unwrap();
    let builder = state.builder().unwrap().flow_table(common::flow_table());
    let mut katran = builder.load().unwrap();
    let _ = katran.apply(&state).unwrap();
    katran
}

/// What is wrong with the program's result.
fn fault(case: &Case, verdict: Verdict, out: &[u8]) -> Option<String> {
    if !case.verdicts.contains(&verdict.to_string()) {
        return Some(format!("{verdict}, not {:?}", case.verdicts));
    }
    if verdict == Verdict::Pass && out != case.frame {
        return Some(format!("passed, but altered: {}", hex(out)));
    }
    if verdict != Verdict::Tx {
        return None;
    }
    let checks = case.check.as_object().cloned().unwrap_or_default();
    checks.iter().find_map(|(name, value)| match name.as_str() {
        "echo" => echo_fault(&case.frame, out),
        "outer_total" => {
            let total = u64::from(u16::from_be_bytes([out[16], out[17]]));
            (Some(total) != value.as_u64()).then(|| format!("outer total length {total}"))
        }
        "outer_src_not" => {
            let source = Ipv4Addr::new(out[26], out[27], out[28], out[29]).to_string();
            let never = value.as_array().unwrap();
            let is_one = never
                .iter()
                .any(|address| address.as_str() == Some(&source));
            is_one.then(|| format!("outer source {source}"))
        }
        other => panic!("unknown check {other}"),
    })
}

/// Checks for a valid IPv4 echo reply: addresses swapped, the message otherwise the same.
fn echo_fault(request: &[u8], reply: &[u8]) -> Option<String> {
    const GUE_PORT: u16 = 6080;
    let is_turned = reply[..6] == request[6..12]
        && reply[6..12] == request[..6]
        && reply[26..30] == request[30..34]
        && reply[30..34] == request[26..30];
    let is_same = reply[34] == 0 && reply[35] == 0 && reply[38..] == request[38..];
    match sound::fault(reply, GUE_PORT) {
        Some(fault) => Some(fault.to_owned()),
        None => (!is_turned || !is_same).then(|| hex(reply)),
    }
}

#[test]
fn the_cases_hold() {
    let katran = balancer();
    for case in cases() {
        let ran = katran.simulate(&case.frame).unwrap();
        let fault = fault(&case, ran.verdict, &ran.frame);
        assert_eq!(fault, None, "{} ({})", case.name, ran.reason);
    }
}

#[test]
fn the_model_agrees_on_the_cases() {
    let katran = balancer();
    let cpu = katran.forwarding_cpus()[0];
    let mut model = mirror::of(&katran, cpu);
    for case in cases() {
        let ran = katran.simulate(&case.frame).unwrap();
        let expected = model.walk(&case.frame, 0);
        let verdict = format!("{:?}", expected.end.verdict()).to_uppercase();
        assert_eq!(verdict, ran.verdict.to_string(), "{}", case.name);
        if ran.verdict != Verdict::Drop {
            assert_eq!(hex(&ran.frame), hex(&expected.frame), "{}", case.name);
        }
    }
}
