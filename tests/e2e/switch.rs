//! Switching rings under traffic: a packet sees the old ring or the new one, and always a real of
//! its own VIP.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use katran::Flow;
use katran::Katran;
use katran::Real;
use katran::RealChange;
use katran::Vip;
use katran::VipFlags;
use katran::XdpMode;
use katran::flows::Choice;
use katran_lab::LabConfig;
use katran_lab::StopOnDrop;
use katran_lab::UdpClient;

use crate::site;
use crate::site::PORT;
use crate::site::Site;

/// The least number of switches of each VIP, and of answers.
const SWITCHES: u64 = 200;
const ANSWERS: u64 = 2_000;

/// A VIP that alternates between two disjoint sets of reals.
struct Changing {
    vip: Vip,
    sets: [Vec<Real>; 2],
}

/// A socket, and its flow's backend under either set.
type Client = (UdpClient, [String; 2]);

impl Changing {
    fn switch(&self, katran: &mut Katran, to: usize) {
        let leave = self.sets[1 - to]
            .iter()
            .map(|real| RealChange::Remove(real.address()));
        let join = self.sets[to].iter().copied().map(RealChange::Add);
        let changes: Vec<RealChange> = leave.chain(join).collect();
        katran.modify_reals(self.vip, &changes).unwrap();
    }

    /// Which backend each socket gets under either set. Leaves the first set in use.
    fn clients(&self, site: &mut Site) -> Vec<Client> {
        let sockets: Vec<UdpClient> = (0..24)
            .map(|_| site::udp(&site.lab.client, self.vip))
            .collect();
        let mut names = [1, 0].map(|set| {
            self.switch(&mut site.katran, set);
            let name = |socket: &UdpClient| {
                let flow = Flow::udp(socket.local_addr().unwrap(), site::service(self.vip));
                let answer = site.katran.real_for_flow(&flow).unwrap().unwrap();
                assert_eq!(answer.choice, Choice::Ring);
                site::backend_at(&site.lab, answer.real.unwrap())
            };
            sockets.iter().map(name).collect::<Vec<_>>()
        });
        names.reverse();
        let [first, second] = names;
        let names = first.into_iter().zip(second).map(<[String; 2]>::from);
        sockets.into_iter().zip(names).collect()
    }
}

#[test]
fn switching_between_disjoint_sets_of_reals_loses_no_packet() {
    let config = LabConfig {
        backends: 6,
        ..LabConfig::default()
    };
    // Few numbers, so that they are reused all the time.
    let mut site = Site::with(config, XdpMode::Native, |builder| {
        builder.max_reals(8).ring_size(1009)
    });
    let _servers = site.lab.serve_udp(PORT).unwrap();
    let services = [
        (site.lab.vip4(), [0..2, 2..4]),
        (site.lab.vip6(), [4..5, 5..6]),
    ]
    .map(|(address, sets)| {
        let reals = site::reals(&site.lab, address);
        let vip = Vip::udp((address, PORT).into());
        // Every packet looks at the ring.
        site.katran.add_vip(vip, VipFlags::LRU_BYPASS).unwrap();
        let sets = sets.map(|range| reals[range].iter().copied().map(Real::new).collect());
        let service = Changing { vip, sets };
        for real in &service.sets[0] {
            site.katran.add_real(vip, *real).unwrap();
        }
        service
    });
    let clients = services
        .each_ref()
        .map(|service| service.clients(&mut site));

    let (stop, answers) = (AtomicBool::new(false), [0; 2].map(AtomicU64::new));
    let Site { katran, .. } = &mut site;
    let (switches, legal) = thread::scope(|scope| {
        let traffic: Vec<_> = clients
            .iter()
            .zip(&answers)
            .map(|(clients, answers)| {
                let stop = &stop;
                scope.spawn(move || talk(clients, stop, answers))
            })
            .collect();
        let _stop = StopOnDrop(&stop);
        let mut switches = 0;
        let end = Instant::now() + Duration::from_secs(600);
        let enough = || answers.iter().all(|n| n.load(Ordering::Relaxed) >= ANSWERS);
        while switches < SWITCHES || !enough() {
            // A failed thread stops answering; its own message says why.
            if Instant::now() > end || traffic.iter().any(|thread| thread.is_finished()) {
                break;
            }
            switches += 1;
            for service in &services {
                service.switch(katran, (switches % 2) as usize);
            }
        }
        stop.store(true, Ordering::Relaxed);
        let legal: Vec<[u64; 2]> = traffic
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        (switches, legal)
    });
    assert!(switches >= SWITCHES, "only {switches} switches");
    for [first, second] in legal {
        assert!(first + second >= ANSWERS, "only {first} + {second} answers");
        assert!(first > 0 && second > 0, "both sets were asked");
    }
    let drops = site.katran.stats().ring_drops().unwrap();
    assert_eq!((drops.empty, drops.unknown_real), (0, 0));
    assert_eq!(site.katran.stats().totals().unwrap().drop.packets, 0);
    let packets = site.katran.stats().flow_table().unwrap();
    assert!(packets.settled >= 2 * ANSWERS, "each asked the ring");
    assert_eq!((packets.packets, packets.misses), (0, 0));
}

/// Asks until it is stopped, and returns how many answers came from each set.
fn talk(clients: &[Client], stop: &AtomicBool, answers: &AtomicU64) -> [u64; 2] {
    let mut from = [0; 2];
    for (socket, names) in clients.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let name = socket.ask(b"who").unwrap();
        let set = names.iter().position(|legal| *legal == name);
        let set = set.unwrap_or_else(|| panic!("{name} answered, expected one of {names:?}"));
        from[set] += 1;
        answers.fetch_add(1, Ordering::Relaxed);
    }
    from
}
