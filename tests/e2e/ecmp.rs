//! Two balancers behind one route, and balancers that agree without ever having talked.

use katran::Flow;
use katran_lab::TcpClient;

use crate::world::Setup;
use crate::world::World;
use crate::world::socket;

const CONNECTIONS: usize = 100;

fn setup() -> Setup {
    Setup {
        balancers: 2,
        backends: 4,
        ..Setup::default()
    }
}

#[test]
fn every_connection_survives_the_loss_and_return_of_a_balancer() {
    let mut world = World::new(setup());
    let mut clients: Vec<(TcpClient, String)> = Vec::new();
    for vip in [world.vip4(), world.vip6()] {
        for _ in 0..CONNECTIONS {
            let mut client = world.connect(vip);
            let name = client.ask("who").unwrap();
            clients.push((client, name));
        }
    }
    let forwarded = |world: &World, index: usize| -> u64 {
        let vips = [world.vip4(), world.vip6()].into_iter();
        vips.map(|vip| {
            world.katrans[index]
                .vip_counters(vip)
                .unwrap()
                .forwarded
                .packets
        })
        .sum()
    };
    let both: Vec<u64> = (0..2).map(|index| forwarded(&world, index)).collect();
    assert!(both.iter().all(|packets| *packets > 50), "{both:?}");

    world.lab.remove_balancer_route(1).unwrap();
    let left_behind = forwarded(&world, 1);
    for (client, name) in &mut clients {
        assert_eq!(&client.ask("who").unwrap(), name);
    }
    assert_eq!(forwarded(&world, 1), left_behind, "the route is gone");

    // The other way round, with a balancer that has never seen any of these flows.
    let fresh = world.balancer_again(1);
    world.katrans[1] = fresh;
    world.lab.add_balancer_route(1).unwrap();
    world.lab.remove_balancer_route(0).unwrap();
    for (client, name) in &mut clients {
        assert_eq!(&client.ask("who").unwrap(), name);
    }
    assert!(forwarded(&world, 1) > 2 * CONNECTIONS as u64);
}

#[test]
fn balancers_agree_on_flows_that_none_has_seen() {
    let world = World::new(setup());
    let [one, other] = &world.katrans[..] else {
        panic!("two balancers");
    };
    for vip in [world.vip4(), world.vip6()] {
        for index in 0..2000u32 {
            let port = 1024 + (index * 31 % 60_000) as u16;
            let source = match vip.address() {
                std::net::IpAddr::V4(_) => {
                    ([100, 64, (index >> 8) as u8, index as u8], port).into()
                }
                std::net::IpAddr::V6(_) => {
                    ([0x2001, 0xdb8, 7, 0, 0, 0, 0, index as u16], port).into()
                }
            };
            let flow = Flow::tcp(source, socket(vip));
            let answer = one.real_for_flow(&flow).unwrap().unwrap();
            assert_eq!(Some(answer), other.real_for_flow(&flow).unwrap(), "{flow}");
            assert!(answer.real.is_some());
        }
    }
}

impl World {
    /// Takes a balancer's program away and attaches a new one in its place.
    fn balancer_again(&mut self, index: usize) -> katran::Katran {
        self.katrans[index].detach_all();
        self.balancer(index, &setup())
    }
}
