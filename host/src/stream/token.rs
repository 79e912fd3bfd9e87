//! What the epoll set gives back with an event: which stream, and which end of it.

use super::StreamId;

/// One end of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Downstream = 0,
    Upstream = 1,
}

impl Side {
    pub(super) const BOTH: [Self; 2] = [Self::Downstream, Self::Upstream];

    pub(super) fn other(self) -> Self {
        match self {
            Self::Downstream => Self::Upstream,
            Self::Upstream => Self::Downstream,
        }
    }
}

/// What an event of the epoll set is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) index: u32,
    /// Low bits of the stream's counter: an event of an earlier stream in the same slot is told by them.
    pub(super) generation: u32,
    pub(super) side: Side,
}

impl Token {
    const GENERATION: u32 = u32::MAX >> 1;

    pub(super) fn of(index: u32, id: StreamId, side: Side) -> Self {
        Self {
            index,
            // Truncated on purpose.
            generation: (id.0 >> 8) as u32 & Self::GENERATION,
            side,
        }
    }

    pub(super) fn pack(self) -> u64 {
        u64::from(self.index) << 32 | u64::from(self.generation) << 1 | self.side as u64
    }

    pub(super) fn unpack(data: u64) -> Self {
        Self {
            index: (data >> 32) as u32,
            generation: data as u32 >> 1,
            side: Side::BOTH[(data & 1) as usize],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_keeps_its_parts() {
        for side in Side::BOTH {
            for (index, id) in [(0, 0), (7, 3 << 8 | 9), (u32::MAX, u64::MAX)] {
                let token = Token::of(index, StreamId(id), side);
                assert_eq!(Token::unpack(token.pack()), token);
                assert_eq!((token.index, token.side), (index, side));
            }
        }
        let of = |id| Token::of(1, StreamId(id), Side::Upstream);
        assert_ne!(of(1 << 8), of(2 << 8));
    }
}
