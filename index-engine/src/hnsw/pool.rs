//! The nearest nodes that a search has met, in order, and which of them it has
//! expanded.

use super::Candidate;

/// `ordered rank << 32 | id << 1 | is expanded`
pub(crate) struct Pool {
    entries: Vec<u64>,
    width: usize,
    /// Everything before is expanded.
    next: usize,
}

impl Pool {
    /// For at most `width` nodes.
    pub(crate) fn new(width: usize) -> Self {
        Self {
            entries: Vec::with_capacity(width + 1),
            width,
            next: 0,
        }
    }

    /// Ranks from here on are of no interest.
    #[inline]
    pub(crate) fn threshold(&self) -> f32 {
        if self.entries.len() < self.width {
            return f32::INFINITY;
        }
        self.entries
            .last()
            .map_or(f32::INFINITY, |worst| rank(*worst))
    }

    #[inline]
    pub(crate) fn insert(&mut self, node: Candidate) {
        let entry = u64::from(ordered(node.rank())) << 32 | u64::from(node.id()) << 1;
        if self.entries.len() == self.width {
            // Most that a search meets late is farther than all: no place is looked for.
            if self.entries.last().is_none_or(|worst| *worst < entry) {
                return;
            }
            self.entries.pop();
        }
        let at = self.entries.partition_point(|known| *known < entry);
        self.entries.insert(at, entry);
        self.next = self.next.min(at);
    }

    /// The nearest node that is not expanded; it counts as expanded from now on.
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<Candidate> {
        self.pop_placed().map(|(node, _)| node)
    }

    /// The same, and how many are nearer.
    #[inline]
    pub(crate) fn pop_placed(&mut self) -> Option<(Candidate, usize)> {
        let at = self.next;
        let entry = self.entries.get_mut(at)?;
        let node = Candidate::new(rank(*entry), *entry as u32 >> 1);
        *entry |= 1;
        self.next = at + 1;
        while self
            .entries
            .get(self.next)
            .is_some_and(|entry| entry & 1 == 1)
        {
            self.next += 1;
        }
        Some((node, at))
    }
}

/// Floats order like sign-magnitude integers.
#[inline]
fn ordered(rank: f32) -> u32 {
    let bits = rank.to_bits();
    if bits >> 31 == 1 {
        !bits
    } else {
        bits | 1 << 31
    }
}

#[inline]
fn rank(entry: u64) -> f32 {
    let ordered = (entry >> 32) as u32;
    f32::from_bits(if ordered >> 31 == 1 {
        ordered & !(1 << 31)
    } else {
        !ordered
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_come_out_once_each_and_the_width_is_kept() {
        let mut pool = Pool::new(3);
        assert_eq!((pool.pop(), pool.threshold()), (None, f32::INFINITY));
        let node = |id, rank| Candidate::new(rank, id);
        for (id, rank) in [(1, 4.0), (2, -1.5), (3, 2.0)] {
            pool.insert(node(id, rank));
        }
        assert_eq!(pool.threshold(), 4.0);
        assert_eq!(pool.pop_placed(), Some((node(2, -1.5), 0)));
        // Pushes the farthest out.
        pool.insert(node(4, -2.0));
        assert_eq!(pool.threshold(), 2.0);
        pool.insert(node(5, 9.0));
        assert_eq!(
            [pool.pop_placed(), pool.pop_placed(), pool.pop_placed()],
            [Some((node(4, -2.0), 0)), Some((node(3, 2.0), 2)), None]
        );
        let last = node((1 << 28) - 1, 0.0);
        pool.insert(last);
        assert_eq!([pool.pop(), pool.pop()], [Some(last), None]);
    }
}
