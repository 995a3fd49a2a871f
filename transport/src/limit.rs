//! How many connections are open at a time. When there is no room, the oldest connection of the
//! owner that holds the most is closed: one owner, or twenty, cannot keep others out. What a
//! connection is for is not known here.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use tokio::sync::oneshot;

/// A limit that connections count against, in all and for one owner.
pub(crate) struct ConnectionLimit<K: Eq + Hash> {
    max: usize,
    max_of_one: usize,
    table: Arc<Mutex<Table<K>>>,
}

struct Table<K> {
    next: u64,
    len: usize,
    /// Each owner's connections by number, so oldest first. Dropping the sender closes the
    /// connection.
    owners: HashMap<K, BTreeMap<u64, oneshot::Sender<()>>>,
}

/// One connection's share of a limit; dropping it gives the share back.
pub(crate) struct Permit<K: Eq + Hash> {
    owner: K,
    number: u64,
    table: Arc<Mutex<Table<K>>>,
}

/// Resolves when the connection must make room for another one; from then on it is ready.
pub(crate) struct Evicted(Option<oneshot::Receiver<()>>);

impl<K: Eq + Hash> Clone for ConnectionLimit<K> {
    fn clone(&self) -> Self {
        Self { table: self.table.clone(), ..*self }
    }
}

impl<K: Eq + Hash + Clone> ConnectionLimit<K> {
    /// At most `max` connections, of which one owner has at most `max_of_one`; both are at least 1.
    pub(crate) fn new(max: usize, max_of_one: usize) -> Self {
        let table = Table { next: 0, len: 0, owners: HashMap::new() };
        Self { max: max.max(1), max_of_one: max_of_one.max(1), table: Arc::new(Mutex::new(table)) }
    }

    /// Admits one more connection; at the limit another one is evicted.
    pub(crate) fn admit(&self, owner: K) -> (Permit<K>, Evicted) {
        let mut table = lock(&self.table);
        if table.owners.get(&owner).is_some_and(|open| open.len() >= self.max_of_one) {
            table.evict(&owner);
        } else if table.len >= self.max
            && let Some(heaviest) = table.heaviest()
        {
            table.evict(&heaviest);
        }
        let number = table.next;
        let (keep, evicted) = oneshot::channel();
        table.owners.entry(owner.clone()).or_default().insert(number, keep);
        (table.next, table.len) = (number + 1, table.len + 1);
        (Permit { owner, number, table: self.table.clone() }, Evicted(Some(evicted)))
    }
}

impl<K: Eq + Hash + Clone> Table<K> {
    /// The owner of the most connections; of equals the one with the oldest connection.
    fn heaviest(&self) -> Option<K> {
        let weight =
            |open: &BTreeMap<u64, _>| (open.len(), std::cmp::Reverse(open.keys().next().copied()));
        self.owners.iter().max_by_key(|(_, open)| weight(open)).map(|(owner, _)| owner.clone())
    }

    fn evict(&mut self, owner: &K) {
        let oldest = self.owners.get(owner).and_then(|open| open.keys().next().copied());
        if let Some(oldest) = oldest {
            self.remove(owner, oldest);
        }
    }
}

impl<K: Eq + Hash> Table<K> {
    /// One that was evicted before is not there.
    fn remove(&mut self, owner: &K, number: u64) {
        let Some(open) = self.owners.get_mut(owner) else { return };
        if open.remove(&number).is_some() {
            self.len -= 1;
        }
        if open.is_empty() {
            self.owners.remove(owner);
        }
    }
}

fn lock<K>(table: &Mutex<Table<K>>) -> MutexGuard<'_, Table<K>> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Eq + Hash> Drop for Permit<K> {
    fn drop(&mut self) {
        lock(&self.table).remove(&self.owner, self.number);
    }
}

impl Future for Evicted {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if let Some(evicted) = &mut self.0 {
            _ = ready!(Pin::new(evicted).poll(context));
            self.0 = None;
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_evicted(evicted: &mut Evicted) -> bool {
        let mut context = Context::from_waker(std::task::Waker::noop());
        Pin::new(evicted).poll(&mut context).is_ready()
    }

    /// Owners in the order in which their connections open, and which of them are evicted.
    #[test]
    fn the_oldest_connection_of_the_heaviest_owner_makes_room() {
        for (max, max_of_one, owners, evicted) in [
            (4, 4, "aaaa", ""),
            (4, 4, "aaaab", "0"),
            // Two owners that fill every place cannot keep a third one out, nor evict it.
            (4, 4, "ababcabab", "01235"),
            (4, 4, "abcde", "0"),
            (8, 2, "aaab", "0"),
            (1, 1, "ab", "0"),
        ] {
            let limit = ConnectionLimit::new(max, max_of_one);
            let mut open: Vec<_> = owners.chars().map(|owner| limit.admit(owner)).collect();
            let is_out: String = open
                .iter_mut()
                .enumerate()
                // It is asked again: at every read and write of the connection.
                .filter_map(|(index, (_, place))| {
                    (is_evicted(place) && is_evicted(place)).then(|| index.to_string())
                })
                .collect();
            assert_eq!(is_out, evicted, "{max} {max_of_one} {owners}");
        }
    }

    #[test]
    fn a_permit_that_is_dropped_makes_room() {
        let limit = ConnectionLimit::new(2, 2);
        let (first, mut kept) = limit.admit('a');
        let second = limit.admit('a');
        drop(second);
        let _third = limit.admit('b');
        assert!(!is_evicted(&mut kept));
        drop(first);
        assert_eq!(lock(&limit.table).len, 1);
    }
}
