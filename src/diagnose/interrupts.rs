//! Finds the CPUs that serve the interrupts of an interface's receive queues, in sysfs and
//! /proc/irq. Packets start there, so these should be the forwarding CPUs.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::path::PathBuf;

use super::Diagnosis;
use super::Subject;
use crate::config::parse_list;
use crate::sys::text;
use crate::types::MacAddr;

/// Interrupts of a card that belong to no receive queue, by parts of the drivers' names for them.
const OTHERS: [&str; 5] = ["config", "output", "async", "mgmnt", "misc"];

/// The interrupt of a receive queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interrupt {
    pub(crate) number: u32,
    /// The driver's name for it.
    pub(crate) name: String,
    pub(crate) cpus: BTreeSet<u32>,
}

/// The sysfs directory of an interface, if there is one.
///
/// sysfs shows the network namespace in which it was mounted, so this compares index and address.
pub(super) fn sysfs_of(name: &str, index: u32, mac: Option<MacAddr>) -> Option<PathBuf> {
    let interface = Path::new("/sys/class/net").join(name);
    let same = line(&interface.join("ifindex")) == index.to_string()
        && line(&interface.join("address")).parse().ok() == mac
        && mac.is_some();
    same.then_some(interface)
}

fn line(path: &Path) -> String {
    text::read(path).unwrap_or_default().trim().to_owned()
}

/// Interrupts of a device's receive queues; empty for other interfaces, or if unknown.
pub(super) fn interrupts(name: &str, index: u32, mac: Option<MacAddr>) -> Vec<Interrupt> {
    let Some(interface) = sysfs_of(name, index, mac) else {
        return Vec::new();
    };
    let mut numbers = BTreeSet::new();
    // A virtio card's interrupts belong to its parent device.
    for place in ["device/msi_irqs", "device/../msi_irqs"] {
        let entries = fs::read_dir(interface.join(place)).into_iter().flatten();
        let entries = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok());
        numbers.extend(entries.filter_map(|number| number.parse::<u32>().ok()));
    }
    let interrupts = numbers.into_iter().map(|number| {
        let of = |file: &str| line(&Path::new("/proc/irq").join(number.to_string()).join(file));
        let effective = of("effective_affinity_list");
        let list = match effective.is_empty() {
            true => of("smp_affinity_list"),
            false => effective,
        };
        let actions = Path::new("/sys/kernel/irq").join(number.to_string());
        Interrupt {
            number,
            name: line(&actions.join("actions")),
            cpus: parse_list(&list).unwrap_or_default(),
        }
    });
    let of_queues = interrupts.filter(|interrupt| {
        let name = &interrupt.name;
        !name.is_empty() && !OTHERS.iter().any(|other| name.contains(other))
    });
    of_queues.filter(|of| !of.cpus.is_empty()).collect()
}

/// Compares interrupts with the CPUs that have a flow table.
pub(super) fn judge(interrupts: &[Interrupt], forwarding: &BTreeSet<u32>, found: &mut Diagnosis) {
    let Some(first) = interrupts.first() else {
        return;
    };
    let text = |cpus: &mut dyn Iterator<Item = &u32>| {
        cpus.map(u32::to_string).collect::<Vec<_>>().join(", ")
    };
    let about = Subject::Queues;
    let astray = interrupts
        .iter()
        .find(|interrupt| !interrupt.cpus.is_subset(forwarding));
    let used: BTreeSet<u32> = interrupts
        .iter()
        .flat_map(|of| of.cpus.iter().copied())
        .collect();
    if let Some(Interrupt { number, name, cpus }) = astray {
        let message = format!(
            "packets arrive on CPUs without a flow table: {}; for example by interrupt {number} ({name}), \
             on CPU {}",
            text(&mut used.difference(forwarding)),
            text(&mut cpus.iter()),
        );
        let advice = format!(
            "echo CPU > /proc/irq/{number}/smp_affinity_list for each such interrupt, with the CPUs {}; or \
             set forwarding_cpus",
            text(&mut forwarding.iter())
        );
        return found.warn(about, message, advice);
    }
    let idle: BTreeSet<u32> = forwarding.difference(&used).copied().collect();
    if interrupts.len() > used.len() && !idle.is_empty() {
        let message = format!(
            "{} interrupts of receive queues share the CPUs {}, and these CPUs with a flow table have none: {}",
            interrupts.len(),
            text(&mut used.iter()),
            text(&mut idle.iter())
        );
        let advice = format!(
            "give each CPU one: echo CPU > /proc/irq/{}/smp_affinity_list, and so on",
            first.number
        );
        return found.note(about, message, advice);
    }
    let message = format!(
        "interrupts of receive queues go to CPUs with a flow table: {}",
        text(&mut used.iter())
    );
    found.ok(about, message);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnose::Severity;
    use crate::rtnetlink::Requests;

    fn on(cpus: &[&[u32]]) -> Vec<Interrupt> {
        let numbered = (30..).zip(cpus);
        let interrupts = numbered.map(|(number, cpus)| Interrupt {
            number,
            name: format!("eth0-TxRx-{}", number - 30),
            cpus: cpus.iter().copied().collect(),
        });
        interrupts.collect()
    }

    #[test]
    fn interrupts_belong_on_the_cpus_that_forward() {
        let judged = |cpus: &[&[u32]]| {
            let mut found = Diagnosis::default();
            judge(&on(cpus), &BTreeSet::from([0, 1, 2]), &mut found);
            found.findings().first().cloned()
        };
        assert_eq!(judged(&[]), None);
        for good in [&[&[0][..], &[1], &[2]][..], &[&[1]], &[&[0, 1, 2]]] {
            assert_eq!(judged(good).unwrap().severity, Severity::Ok, "{good:?}");
        }
        let astray = judged(&[&[0], &[1], &[5]]).unwrap();
        assert_eq!(astray.severity, Severity::Warning);
        assert!(
            astray
                .message
                .contains("table: 5; for example by interrupt 32 (eth0-TxRx-2), on CPU 5")
        );
        assert!(astray.advice.contains("/proc/irq/32/smp_affinity_list"));
        let heaped = judged(&[&[1], &[1], &[2]]).unwrap();
        assert_eq!(heaped.severity, Severity::Note);
        assert!(heaped.message.contains("3 interrupts"), "{heaped:?}");
        assert!(heaped.message.ends_with("have none: 0"), "{heaped:?}");
    }

    /// Works with whatever this machine has, and is not fooled by another interface of the same
    /// name.
    #[test]
    fn interrupts_of_this_machine_are_found() {
        let mut requests = Requests::new().unwrap();
        for index in 1..32 {
            let Some(interface) = requests.interface(index).unwrap() else {
                continue;
            };
            let found = interrupts(&interface.name, index, interface.mac);
            for interrupt in &found {
                assert!(!OTHERS.iter().any(|other| interrupt.name.contains(other)));
                assert!(
                    interrupt.cpus.iter().all(|cpu| *cpu < 4096),
                    "{interrupt:?}"
                );
            }
            let other = MacAddr::new([2, 0, 0, 0, 0, 0x99]);
            assert_eq!(interrupts(&interface.name, index, Some(other)), []);
            assert_eq!(interrupts(&interface.name, index + 100, interface.mac), []);
        }
    }
}
