//! Clients that are served throughout a test, and the frames that hosts count meanwhile.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use katran_lab::Host;
use katran_lab::Lab;
use katran_lab::TCP_LISTEN;
use katran_lab::TCP_TIME_WAIT;
use katran_lab::TcpClient;
use katran_lab::UdpClient;
use katran_lab::tcp_states;

pub(crate) const PORT: u16 = 80;
/// Lasting connections of each service.
pub(crate) const LASTING: usize = 4;
/// Between two questions of a client, so that a busy machine drops nothing from its queues.
const PAUSE: Duration = Duration::from_millis(2);

/// Packets that a host has sent, except its neighbour discovery.
pub(crate) fn sent(host: &Host) -> u64 {
    let read = |name: &str| {
        let path = format!("/proc/thread-self/net/{name}");
        host.run(|| fs::read_to_string(path)).unwrap()
    };
    let v4 = read("snmp");
    let mut lines = v4.lines().filter(|line| line.starts_with("Ip: "));
    let mut next = || lines.next().unwrap().split_whitespace();
    let columns = next().zip(next());
    let v4 = columns.filter(|(name, _)| *name == "OutRequests");
    let v4: u64 = v4.map(|(_, number)| number.parse::<u64>().unwrap()).sum();
    let v6 = read("snmp6");
    let of = |name: &str| -> u64 {
        let mut lines = v6
            .lines()
            .filter_map(|line| line.split_once(char::is_whitespace));
        let of = lines.find(|(of, _)| *of == name).unwrap();
        of.1.trim().parse().unwrap()
    };
    v4 + of("Ip6OutRequests") - of("Icmp6OutMsgs")
}

/// Whether no connection of the client or of a backend has anything left to send.
pub(crate) fn are_closed(lab: &Lab) -> bool {
    let backends = lab.backends.iter().map(|backend| &backend.host);
    let mut hosts = [&lab.client].into_iter().chain(backends);
    hosts.all(|host| {
        let states = tcp_states(host).unwrap();
        let mut states = states.iter();
        states.all(|state| [TCP_LISTEN, TCP_TIME_WAIT].contains(state))
    })
}

/// Frames that each host's interfaces have lost.
pub(crate) fn lost(lab: &Lab) -> Vec<u64> {
    let hosts = [&lab.client, &lab.router, &lab.balancers[0].host].into_iter();
    let hosts = hosts.chain(lab.backends.iter().map(|backend| &backend.host));
    hosts.map(lost_by).collect()
}

fn lost_by(host: &Host) -> u64 {
    let text = host
        .run(|| fs::read_to_string("/proc/thread-self/net/dev"))
        .unwrap();
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let columns = lines.map(|(_, numbers)| {
        let numbers: Vec<u64> =
            (numbers.split_whitespace().map(|of| of.parse().unwrap())).collect();
        // Errors and drops, received and sent.
        numbers[2] + numbers[3] + numbers[10] + numbers[11]
    });
    columns.sum()
}

/// The answers that clients got.
#[derive(Default)]
pub(crate) struct Answers {
    lasting: AtomicU64,
    new: AtomicU64,
    datagrams: AtomicU64,
    homes: Mutex<BTreeMap<String, usize>>,
}

impl Answers {
    /// On lasting connections, on new ones, and to datagrams.
    pub(crate) fn all(&self) -> [u64; 3] {
        [&self.lasting, &self.new, &self.datagrams].map(|of| of.load(Relaxed))
    }

    /// Whether there are this many more of each kind.
    pub(crate) fn are_more(&self, before: [u64; 3], by: u64) -> bool {
        let now = self.all().into_iter();
        now.zip(before).all(|(now, before)| now > before + by)
    }

    /// Lasting connections by the backend that each belongs to.
    pub(crate) fn homes(&self) -> BTreeMap<String, usize> {
        self.homes.lock().unwrap().clone()
    }
}

/// Serves clients until `stop`; every question must be answered: on lasting and new connections in
/// both families, and by datagram.
pub(crate) fn serve<'a>(
    scope: &'a thread::Scope<'a, '_>,
    lab: &'a Lab,
    answers: &'a Answers,
    stop: &'a AtomicBool,
) {
    let services = [lab.vip4(), lab.vip6()].map(|address| (address, PORT).into());
    for service in services {
        for _ in 0..LASTING {
            scope.spawn(move || {
                let mut connection = TcpClient::connect(&lab.client, service).unwrap();
                let backend = connection.ask("who").unwrap();
                let homes = answers.homes.lock();
                *homes.unwrap().entry(backend.clone()).or_default() += 1;
                let of = connection.local_addr().unwrap();
                while !stop.load(Relaxed) {
                    let answer = connection.ask("who");
                    let answer =
                        answer.unwrap_or_else(|error| panic!("{of} of {backend}: {error}"));
                    assert_eq!(answer, backend);
                    answers.lasting.fetch_add(1, Relaxed);
                    thread::sleep(PAUSE);
                }
            });
        }
        scope.spawn(move || {
            while !stop.load(Relaxed) {
                let mut connection = TcpClient::connect(&lab.client, service).unwrap();
                let answer = connection.ask("who");
                answer.unwrap_or_else(|error| {
                    panic!("new {}: {error}", connection.local_addr().unwrap())
                });
                answers.new.fetch_add(1, Relaxed);
                thread::sleep(PAUSE);
            }
        });
    }
    scope.spawn(move || {
        let socket = UdpClient::connect(&lab.client, services[0]).unwrap();
        while !stop.load(Relaxed) {
            let answer = socket.ask(b"who");
            answer.unwrap_or_else(|error| panic!("datagram: {error}"));
            answers.datagrams.fetch_add(1, Relaxed);
            thread::sleep(PAUSE);
        }
    });
}
