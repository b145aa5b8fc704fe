//! The bytes of calls whose caller is not known: of questions for the health, which everybody may ask.
//!
//! They are answered at once, so that few are there at a time; those that are bounded by nothing else would be worth
//! keeping half sent. All of them have a small part of what may be held, and one address a small part of that: by
//! default 1024 questions at a time, 64 of one address. It is drawn from what is kept for those who hold little, so that
//! probes get through whatever principals hold.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use super::bytes::{CALL_BYTES, Share, Sum};

/// How many questions of one address find room on however small a server.
const LEAST: usize = 4;

/// So many addresses are remembered before those are forgotten that ask nothing now.
const REMEMBERED: usize = 4096;

/// See the module.
#[derive(Debug)]
pub(super) struct Strangers {
    all: Share,
    of_address: usize,
    addresses: Mutex<HashMap<IpAddr, Arc<Sum>>>,
}

impl Strangers {
    /// Those of a server that holds so many bytes.
    pub(super) fn of(max_bytes: usize) -> Self {
        let of_address = (max_bytes / 512).max(LEAST * CALL_BYTES);
        let most = (max_bytes / 32).max(of_address);
        Self { all: Share { sum: Arc::default(), most }, of_address, addresses: Mutex::default() }
    }

    /// What somebody at an address pays from.
    pub(super) fn shares(&self, address: Option<IpAddr>) -> [Option<Share>; 2] {
        let of_address = address.map(|address| {
            let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
            if addresses.len() >= REMEMBERED && !addresses.contains_key(&address) {
                addresses.retain(|_, sum| Arc::strong_count(sum) > 1);
            }
            Share { sum: Arc::clone(addresses.entry(address).or_default()), most: self.of_address }
        });
        match of_address {
            Some(own) => [Some(own), Some(self.all.clone())],
            None => [Some(self.all.clone()), None],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_forgotten_that_ask_nothing_and_no_others() {
        let strangers = Strangers::of(1 << 29);
        let address = |at: usize| Some(IpAddr::from(u32::try_from(at).unwrap().to_be_bytes()));
        let [asking, _] = strangers.shares(address(0));
        let asking = asking.unwrap();
        for at in 1..3 * REMEMBERED {
            strangers.shares(address(at));
            assert!(strangers.addresses.lock().unwrap().len() <= REMEMBERED);
        }
        let [same, _] = strangers.shares(address(0));
        assert!(Arc::ptr_eq(&same.unwrap().sum, &asking.sum));
    }
}
