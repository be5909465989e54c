//! The addresses that VIPs have, whatever port and protocol. By them the program tells packets that
//! it cannot forward, and echo requests, from the host's.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;

use crate::skel::katran::types;
use crate::sys::map::Typed;
use crate::types::Family;
use crate::types::Vip;
use crate::types::address_bytes;

/// `vip_addresses`, and the number of VIPs of each address or prefix.
pub(crate) struct VipAddresses {
    map: Typed<types::vip_prefix_key, u32>,
    /// 0 VIPs: the kernel refused to remove the address.
    vips: BTreeMap<(IpAddr, u8), u32>,
}

impl VipAddresses {
    pub(crate) fn new(map: Typed<types::vip_prefix_key, u32>) -> Self {
        Self {
            map,
            vips: BTreeMap::new(),
        }
    }

    /// Counts one more VIP of its address.
    pub(crate) fn add(&mut self, vip: &Vip) -> io::Result<()> {
        match self.vips.entry(place(vip)) {
            Entry::Occupied(mut known) => *known.get_mut() += 1,
            Entry::Vacant(new) => {
                self.map.update(&key(vip), &1)?;
                new.insert(1);
            }
        }
        Ok(())
    }

    /// Counts a VIP that its address already had.
    pub(crate) fn resume(&mut self, vip: &Vip) {
        *self.vips.entry(place(vip)).or_default() += 1;
    }

    /// Writes the address of a known VIP.
    pub(crate) fn write(&self, vip: &Vip) -> io::Result<()> {
        self.map.update(&key(vip), &1)
    }

    /// Removes an address that no known VIP has.
    pub(crate) fn forget(&self, vip: &Vip) -> io::Result<()> {
        match self.vips.contains_key(&place(vip)) {
            true => Ok(()),
            false => self.map.delete(&key(vip)).map(drop),
        }
    }

    /// Counts one VIP less of its address. If the kernel refuses, packets to the address that
    /// cannot be forwarded are dropped until the next VIP with that address comes and goes.
    pub(crate) fn remove(&mut self, vip: &Vip) -> io::Result<()> {
        if let Entry::Occupied(mut known) = self.vips.entry(place(vip)) {
            let left = known.get().saturating_sub(1);
            known.insert(left);
            if left == 0 {
                self.map.delete(&key(vip))?;
                known.remove();
            }
        }
        Ok(())
    }

    /// The number of different addresses.
    pub(crate) fn len(&self) -> usize {
        self.vips.len()
    }
}

impl AsFd for VipAddresses {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

fn place(vip: &Vip) -> (IpAddr, u8) {
    (vip.address(), vip.prefix_length())
}

fn key(vip: &Vip) -> types::vip_prefix_key {
    types::vip_prefix_key {
        prefix_length: 32 + u32::from(vip.prefix_length()),
        port: 0,
        protocol: 0,
        family: Family::of(vip.address()).number(),
        address: address_bytes(vip.address()),
    }
}
