//! The addresses that VIPs have, whatever port and protocol: by them packets that cannot be forwarded, and
//! echo requests, are told from the host's own.

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

/// `vip_addresses`, and how many VIPs there are of each address or prefix.
pub(crate) struct VipAddresses {
    map: Typed<types::vip_prefix_key, u32>,
    /// One without VIPs is one that the kernel has refused to remove.
    vips: BTreeMap<(IpAddr, u8), u32>,
}

impl VipAddresses {
    pub(crate) fn new(map: Typed<types::vip_prefix_key, u32>) -> Self {
        Self {
            map,
            vips: BTreeMap::new(),
        }
    }

    /// The address has one VIP more.
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

    /// The address has had this VIP before.
    pub(crate) fn resume(&mut self, vip: &Vip) {
        *self.vips.entry(place(vip)).or_default() += 1;
    }

    /// Writes the address of a VIP that is known.
    pub(crate) fn write(&self, vip: &Vip) -> io::Result<()> {
        self.map.update(&key(vip), &1)
    }

    /// Removes an address that no VIP is known to have.
    pub(crate) fn forget(&self, vip: &Vip) -> io::Result<()> {
        match self.vips.contains_key(&place(vip)) {
            true => Ok(()),
            false => self.map.delete(&key(vip)).map(drop),
        }
    }

    /// It has one VIP less. If the kernel refuses, what cannot be forwarded to the address is dropped until
    /// the next VIP that comes there has gone.
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

    /// How many different ones there are.
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
