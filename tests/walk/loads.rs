//! Every program loads in every configuration that changes its instructions: the first thing to try
//! with another compiler or kernel (`make compilers`, `make kernels`).

use katran::Builder;
use katran::Decap;
use katran::Encapsulation;
use katran::Features;
use katran::FlowTableKind;
use katran::FlowTracking;
use katran::NextHops;
use katran::RootProgram;
use katran::ServerIdOption;

use crate::common::builder;
use crate::common::ip;
use crate::common::load;

const TABLES: [FlowTableKind; 2] = [FlowTableKind::SetAssociative, FlowTableKind::KernelLru];

/// All features of this version.
fn features() -> Features {
    Features::all() - Features::FLOW_DEBUG
}

fn with(features: Features) -> Builder {
    builder()
        .features(features)
        .source_v4("198.18.0.10".parse().unwrap())
        .source_v6("2001:db8:ffff::10".parse().unwrap())
}

#[test]
fn the_balancer_loads_with_each_feature_alone_with_none_and_with_all() {
    for feature in features().iter() {
        drop(load(with(feature)));
    }
    for features in [Features::empty(), features()] {
        for table in TABLES {
            for tracking in [FlowTracking::All, FlowTracking::Changed] {
                drop(load(
                    with(features).flow_table(table).flow_tracking(tracking),
                ));
            }
        }
    }
}

#[test]
fn the_balancer_loads_with_each_encapsulation_and_frame_setting() {
    for features in [Features::empty(), features()] {
        for encapsulation in [Encapsulation::Ipip, Encapsulation::Gue] {
            for frags in [false, true] {
                let settings = with(features).encapsulation(encapsulation).frags(frags);
                let hops = match encapsulation {
                    Encapsulation::Gue => NextHops::PerReal,
                    _ => NextHops::Gateway,
                };
                drop(load(settings.next_hops(hops).healthcheck_interface("eth0")));
            }
        }
    }
}

#[test]
fn the_balancer_loads_whatever_is_counted_in_detail() {
    for features in [Features::default(), features()] {
        drop(load(with(features).count_syns(true)));
        drop(load(with(features).max_vip_reals(100)));
    }
}

#[test]
fn the_other_programs_load() {
    let decap = Decap::builder().destination(ip("198.51.100.1"));
    drop(decap.clone().load().unwrap());
    drop(decap.server_id(1).load().unwrap());
    for frags in [false, true] {
        drop(RootProgram::builder().frags(frags).load().unwrap());
    }
    drop(ServerIdOption::server(1).unwrap());
    drop(ServerIdOption::client().unwrap());
}
