//! Which bodies are let in: each is held in memory as a whole, and anybody may send one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::strict::Refusal;

/// Up to here a body is small: there may be as many as there are connections.
const SMALL_BYTES_MAX: usize = 16 * 1024;
/// Large bodies at once, of all connections together.
const LARGE_MAX: usize = 8;

/// Room for large bodies, shared by all connections.
#[derive(Clone, Default)]
pub(super) struct Room(Arc<AtomicUsize>);

/// A large body's place, given up when dropped.
struct Place(Room);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What one request may bring along. Its place is held as long as this is.
pub(super) struct Allowance {
    /// The largest body, in bytes.
    bytes_max: usize,
    /// Where large ones find a place.
    room: Room,
    /// The place that was found.
    place: Option<Place>,
}

impl Allowance {
    /// That of a new request.
    pub(super) fn new(bytes_max: usize, room: &Room) -> Allowance {
        Allowance { bytes_max, room: room.clone(), place: None }
    }

    /// Lets a body grow to so many bytes.
    pub(super) fn admit(&mut self, bytes: usize) -> Result<(), Refusal> {
        if bytes > self.bytes_max {
            return Err(Refusal::Bad(413, "the body is too large"));
        }
        if bytes > SMALL_BYTES_MAX && self.place.is_none() {
            let one_more = |taken| (taken < LARGE_MAX).then_some(taken + 1);
            let taken = self.room.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
            taken.map_err(|_| Refusal::Bad(503, "too many large bodies at once"))?;
            self.place = Some(Place(self.room.clone()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_bodies_are_limited_and_small_ones_are_not() {
        let room = Room::default();
        let admit = |bytes| {
            let mut allowance = Allowance::new(1_000_000, &room);
            allowance.admit(bytes).map(|()| allowance)
        };
        let small: Vec<_> = (0..99).map(|_| admit(SMALL_BYTES_MAX).unwrap()).collect();
        let mut large: Vec<_> = (0..LARGE_MAX).map(|_| admit(SMALL_BYTES_MAX + 1).unwrap()).collect();
        assert!(matches!(admit(SMALL_BYTES_MAX + 1), Err(Refusal::Bad(503, _))));
        assert!(matches!(admit(1_000_001), Err(Refusal::Bad(413, _))));
        large.pop();
        let mut grown = admit(1).unwrap();
        for bytes in [2, 20_000, 900_000] {
            grown.admit(bytes).unwrap();
        }
        assert!(admit(20_000).is_err());
        drop((small, grown));
        assert!(admit(20_000).is_ok());
    }
}
