//! Recorded lists against iproute2's reading of them.

use netlink_packet_route::RouteNetlinkMessage;
use serde_json::Value;

use super::super::Peer;
use super::super::answers::interface_of;
use super::super::answers::mac_of;
use super::super::filters::is_clsact;
use super::super::requests::default_routes_in;
use super::super::requests::has_rules_by_interface_in;
use super::answers;
use super::file;
use super::in_words;
use crate::types::MacAddr;

/// iproute2's reading of a recorded list.
fn told(name: &str) -> Vec<Value> {
    let value: Value = serde_json::from_str(&file(&format!("{name}.json"))).unwrap();
    value.as_array().unwrap().clone()
}

#[test]
fn recorded_links_are_what_iproute2_says() {
    let (answers, told) = (answers("links"), told("links"));
    assert_eq!(answers.len(), told.len());
    let index_of = |name: &Value| {
        let link = told.iter().find(|link| link["ifname"] == *name);
        link.map(|link| link["ifindex"].as_u64().unwrap() as u32)
    };
    for (answer, told) in answers.iter().zip(&told) {
        let RouteNetlinkMessage::NewLink(link) = answer else {
            panic!("{answer:?}");
        };
        let interface = interface_of(link);
        let flags: Vec<_> = told["flags"].as_array().unwrap().iter().collect();
        let kind = told["linkinfo"]["info_kind"].as_str();
        let of_link = index_of(&told["link"]);
        let mac = told["address"].as_str().unwrap().parse();
        assert_eq!(u64::from(link.header.index), told["ifindex"]);
        assert_eq!(interface.name, told["ifname"].as_str().unwrap());
        assert_eq!(u64::from(interface.mtu), told["mtu"]);
        assert_eq!(interface.mac, mac.ok().filter(|_| kind.is_some()), "{told}");
        assert_eq!(interface.up, flags.iter().any(|flag| **flag == "UP"));
        assert_eq!(
            interface.carrier,
            flags.iter().any(|flag| **flag == "LOWER_UP")
        );
        assert_eq!(interface.controller, index_of(&told["master"]));
        let lower = of_link.filter(|_| kind == Some("macvlan"));
        assert_eq!(interface.lower, lower);
        let peer = of_link.filter(|_| kind == Some("veth"));
        assert_eq!(interface.peer, peer.map(Peer::Here));
        assert_eq!((interface.vlan, interface.vrf_table), (false, None));
    }
}

#[test]
fn recorded_default_routes_are_what_iproute2_says() {
    for name in ["routes4", "routes6"] {
        let told = told(name);
        let defaults = told.iter().filter(|route| {
            let gone = ["dead", "linkdown"].map(Value::from);
            let flags = route["flags"].as_array().unwrap();
            route["dst"] == "default"
                && route["type"] != "unreachable"
                && !flags.iter().any(|flag| gone.contains(flag))
        });
        let number = |name: &Value| match name.as_str() {
            Some("main") | None => 254,
            Some("local") => 255,
            Some(number) => number.parse().unwrap(),
        };
        let metric = |metrics: &Value, key: &str| metrics[0][key].as_u64();
        let mut expected: Vec<_> = defaults
            .map(|route| {
                let path = route["nexthops"].get(0).unwrap_or(route);
                let gateway = path["gateway"].as_str().unwrap().parse().unwrap();
                let of_mss = metric(&route["metrics"], "advmss").map(|mss| mss + 40);
                let mtu = metric(&route["metrics"], "mtu").or(of_mss);
                let metric = route["metric"].as_u64().unwrap_or(0);
                (metric, number(&route["table"]), Some(gateway), mtu)
            })
            .collect();
        expected.sort_by_key(|(metric, ..)| *metric);
        let routes = default_routes_in(&answers(name));
        let routes = routes.iter().map(|(table, route)| {
            let mtu = route.mtu.map(u64::from);
            (*table, route.gateway, mtu)
        });
        let expected: Vec<_> = expected
            .into_iter()
            .map(|(_, table, gateway, mtu)| (table, gateway, mtu))
            .collect();
        assert!(!expected.is_empty());
        assert_eq!(routes.collect::<Vec<_>>(), expected, "{name}");
    }
}

#[test]
fn recorded_neighbours_rules_and_filters_are_what_iproute2_says() {
    let (answers_of, told_of) = (answers("neighbours"), told("neighbours"));
    assert_eq!(answers_of.len(), told_of.len());
    for (answer, told) in answers_of.iter().zip(&told_of) {
        let RouteNetlinkMessage::NewNeighbour(neighbour) = answer else {
            panic!("{answer:?}");
        };
        let known = told["state"][0] != "INCOMPLETE" && told["state"][0] != "FAILED";
        let mac = told["lladdr"].as_str().filter(|_| known);
        let mac = mac.and_then(|mac| mac.parse().ok());
        assert_eq!(
            mac_of(neighbour),
            mac.filter(|mac: &MacAddr| mac.is_unicast())
        );
    }
    let rules = told("rules");
    let by_interface = rules.iter().filter(|rule| rule.get("oif").is_some());
    let found = answers("rules");
    let found = found
        .into_iter()
        .map(|rule| has_rules_by_interface_in(&[rule]));
    assert_eq!(found.filter(|found| *found).count(), by_interface.count());
    let clsact = told("qdiscs")
        .iter()
        .filter(|of| of["kind"] == "clsact")
        .count();
    let found = answers("qdiscs");
    let found = found.iter().filter(|answer| match answer {
        RouteNetlinkMessage::NewQueueDiscipline(message) => is_clsact(message),
        _ => false,
    });
    assert_eq!((found.count(), clsact), (1, 1));
    // Of another type: u32.
    let filters = answers("egress");
    assert!(!filters.is_empty() && answers("ingress").is_empty());
    for filter in &filters {
        assert_eq!(in_words(filter), in_words(&filters[0]));
    }
}
