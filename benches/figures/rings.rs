//! Properties of rings, without a kernel: the time to build one, the reals' shares by weight, and
//! how many slots change when a real leaves.

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::Duration;

use katran::HashFunction;
use katran::ring::Endpoint;
use katran::ring::Ring;
use katran::ring::RingSize;
use nix::time::ClockId;
use plotters::prelude::RGBColor;

use crate::chart::Axis;
use crate::chart::BLUE;
use crate::chart::Figure;
use crate::chart::GREEN;
use crate::chart::GREY;
use crate::chart::ORANGE;
use crate::chart::Panel;
use crate::chart::Series;
use crate::chart::Style;
use crate::common::grouped;

const FUNCTIONS: [(HashFunction, &str, RGBColor); 2] = [
    (HashFunction::Maglev, "Maglev", ORANGE),
    (HashFunction::MaglevV2, "MaglevV2", BLUE),
];
const BUILT: [u16; 9] = [10, 20, 50, 100, 200, 400, 1000, 2000, 4000];
const LEFT: [u16; 7] = [10, 20, 50, 100, 200, 500, 1000];

type Weight = fn(u16) -> u32;
const EQUAL: Weight = |_| 1;
/// 1 to 100, in no order.
const MIXED: Weight = |i| 1 + u32::from(i) * 37 % 100;

/// Reals 10.0.0.1 and up.
fn endpoints(reals: u16, weight: impl Fn(u16) -> u32) -> Vec<Endpoint> {
    (1..=reals)
        .map(|i| {
            let address = Ipv4Addr::from_bits(0x0a00_0000 + u32::from(i));
            Endpoint::new(i, address.into(), weight(i))
        })
        .collect()
}

fn build(function: HashFunction, endpoints: &[Endpoint]) -> Ring {
    Ring::build(function, RingSize::DEFAULT, endpoints).unwrap()
}

fn slots() -> f64 {
    f64::from(RingSize::DEFAULT.get())
}

/// Milliseconds to build a ring, by the number of reals.
pub(crate) fn build_time(rounds: usize) -> Figure {
    let reals = |range: &[u16]| range.iter().map(|n| f64::from(*n)).collect::<Vec<_>>();
    let mut series = Vec::new();
    for (function, name, color) in FUNCTIONS {
        let weights = [
            ("equal weights", Style::Line, EQUAL),
            ("mixed", Style::Dashed, MIXED),
        ];
        for (kind, style, weight) in weights {
            let points = BUILT.map(|n| {
                let endpoints = endpoints(n, weight);
                (f64::from(n), milliseconds(function, &endpoints, rounds))
            });
            series.push(Series {
                label: format!("{name}, {kind}"),
                color,
                style,
                points: points.into(),
            });
        }
    }
    let measured = series.iter().flat_map(|line: &Series| &line.points);
    let times: Vec<f64> = measured.map(|point| point.1).collect();
    let least = times.iter().copied().fold(f64::INFINITY, f64::min);
    let most = times.iter().copied().fold(0.0, f64::max);
    Figure {
        title: format!(
            "A ring of {} slots is built in {least:.2} to {most:.2} ms",
            grouped(slots() as i64)
        ),
        subtitle: format!("Medians of {rounds} builds."),
        columns: 1,
        panels: vec![Panel {
            title: String::new(),
            x: Axis {
                label: "reals",
                logarithmic: true,
                ticks: reals(&[10, 100, 400, 1000, 4000]),
            },
            y: Axis {
                label: "time to build, ms",
                logarithmic: false,
                ticks: vec![0.0, 0.5, 1.0, 1.5, 2.0, 2.5],
            },
            series,
        }],
    }
}

fn milliseconds(function: HashFunction, endpoints: &[Endpoint], rounds: usize) -> f64 {
    let mut times: Vec<f64> = (0..rounds)
        .map(|_| {
            let began = cpu_time();
            let _ = black_box(build(function, black_box(endpoints)));
            (cpu_time() - began).as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[rounds / 2]
}

/// This thread's CPU time.
fn cpu_time() -> Duration {
    ClockId::CLOCK_THREAD_CPUTIME_ID.now().unwrap().into()
}

/// The slots of each of 100 reals with the weights 1 to 100.
pub(crate) fn shares() -> Figure {
    const REALS: u16 = 100;
    let endpoints = endpoints(REALS, u32::from);
    let total: u32 = endpoints.iter().map(Endpoint::weight).sum();
    let due = |weight: u32| f64::from(weight) / f64::from(total) * 100.0;
    let mut series = vec![Series {
        label: "in proportion".to_owned(),
        color: GREY,
        style: Style::Dashed,
        points: vec![(0.0, 0.0), (100.0, due(100))],
    }];
    let mut furthest: f64 = 0.0;
    for (function, name, color) in FUNCTIONS {
        let shares = build(function, &endpoints).shares();
        let points: Vec<(f64, f64)> = endpoints
            .iter()
            .map(|endpoint| {
                let slots_of = shares.get(&endpoint.number()).copied().unwrap_or(0);
                let share = f64::from(slots_of) / slots() * 100.0;
                (f64::from(endpoint.weight()), share)
            })
            .collect();
        if function == HashFunction::MaglevV2 {
            for (endpoint, (_, share)) in endpoints.iter().zip(&points) {
                let slots_off = (share - due(endpoint.weight())) / 100.0 * slots();
                furthest = furthest.max(slots_off.abs());
            }
        }
        series.push(Series {
            label: name.to_owned(),
            color,
            style: Style::Points,
            points,
        });
    }
    Figure {
        title: format!(
            "MaglevV2 gives each real its weight's share, within {furthest:.1} of {} slots",
            grouped(slots() as i64)
        ),
        subtitle: format!(
            "{REALS} reals with the weights 1 to {REALS}. Maglev counts weights in its first \
             round only."
        ),
        columns: 1,
        panels: vec![Panel {
            title: String::new(),
            x: Axis {
                label: "weight of the real",
                logarithmic: false,
                ticks: vec![0.0, 20.0, 40.0, 60.0, 80.0, 100.0],
            },
            y: Axis {
                label: "share of the slots, %",
                logarithmic: false,
                ticks: vec![0.0, 0.5, 1.0, 1.5, 2.0],
            },
            series,
        }],
    }
}

/// The slots that change when one of this many reals leaves.
pub(crate) fn moved(leavers: u16) -> Figure {
    let (maglev, v2) = (HashFunction::Maglev, HashFunction::MaglevV2);
    assert_eq!(
        build(maglev, &endpoints(100, |_| 1)),
        build(v2, &endpoints(100, |_| 1)),
        "with weights of 1 the functions are one"
    );
    let kinds: [(&str, HashFunction, RGBColor, Weight); 3] = [
        ("all weights 1, both", maglev, GREEN, EQUAL),
        ("Maglev, mixed", maglev, ORANGE, MIXED),
        ("MaglevV2, mixed", v2, BLUE, MIXED),
    ];
    let mut all = vec![Series {
        label: "its own, weights 1".to_owned(),
        color: GREY,
        style: Style::Dashed,
        points: LEFT.map(|n| (f64::from(n), 100.0 / f64::from(n))).into(),
    }];
    let (mut needless, mut most) = (Vec::new(), 0.0_f64);
    for (label, function, color, weight) in kinds {
        let (mut means, mut worst) = (Vec::new(), Vec::new());
        for reals in LEFT {
            let moves = moves(function, &endpoints(reals, weight), leavers);
            let mean = moves.iter().map(|moved| moved.all).sum::<f64>() / moves.len() as f64;
            let of_others = moves.iter().map(|moved| moved.needless).fold(0.0, f64::max);
            means.push((f64::from(reals), mean));
            worst.push((f64::from(reals), of_others));
            most = most.max(of_others);
        }
        for (panel, points) in [(&mut all, means), (&mut needless, worst)] {
            panel.push(Series {
                label: label.to_owned(),
                color,
                style: Style::Line,
                points,
            });
        }
    }
    let panel = |title: &str, logarithmic, ticks: &[f64], series| Panel {
        title: title.to_owned(),
        x: Axis {
            label: "reals before",
            logarithmic: true,
            ticks: LEFT.map(f64::from).into(),
        },
        y: Axis {
            label: "share of the slots, %",
            logarithmic,
            ticks: ticks.into(),
        },
        series,
    };
    Figure {
        title: format!(
            "When a real leaves, those that stay exchange {most:.1} % of the slots at most"
        ),
        subtitle: format!(
            "Over up to {leavers} reals that could leave; its own slots have to move. Mixed: \
             weights 1 to 100."
        ),
        columns: 2,
        panels: vec![
            panel(
                "all that move, mean",
                true,
                &[0.1, 0.3, 1.0, 3.0, 10.0, 30.0],
                all,
            ),
            panel(
                "between reals that stay, worst",
                false,
                &[0.0, 0.5, 1.0, 1.5, 2.0],
                needless,
            ),
        ],
    }
}

/// Percentages of the slots that change when a real leaves.
struct Moved {
    all: f64,
    /// Between reals that stay.
    needless: f64,
}

/// For each of up to `leavers` reals, evenly spread, that could leave.
fn moves(function: HashFunction, endpoints: &[Endpoint], leavers: u16) -> Vec<Moved> {
    let full = build(function, endpoints);
    let step = (endpoints.len() / usize::from(leavers)).max(1);
    (0..endpoints.len())
        .step_by(step)
        .map(|leaver| {
            let mut staying = endpoints.to_vec();
            let gone = staying.remove(leaver).number();
            let rest = build(function, &staying);
            let count = |needless_only: bool| {
                let moved = full.changed_slots(&rest);
                let moved = moved.filter(|(slot, _)| !needless_only || full.slots()[*slot] != gone);
                moved.count() as f64 / slots() * 100.0
            };
            Moved {
                all: count(false),
                needless: count(true),
            }
        })
        .collect()
}
