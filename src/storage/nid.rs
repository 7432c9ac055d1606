//! The integers that stand for long ids everywhere but in the table that names them.

use super::Arg;

macro_rules! nids {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
            pub struct $name(pub i64);

            impl From<$name> for Arg {
                fn from(nid: $name) -> Self {
                    Self::Int(Some(nid.0))
                }
            }

            impl From<Option<$name>> for Arg {
                fn from(nid: Option<$name>) -> Self {
                    Self::Int(nid.map(|nid| nid.0))
                }
            }

            impl From<&[$name]> for Arg {
                fn from(nids: &[$name]) -> Self {
                    Self::Ints(nids.iter().map(|nid| nid.0).collect())
                }
            }
        )+
    };
}

nids! {
    /// A user, local or not.
    UserNid,
    /// A device of a local user.
    DeviceNid,
    /// A room.
    RoomNid,
    /// An event.
    EventNid,
    /// An event type.
    TypeNid,
    /// A pair of event type and state key.
    KeyNid,
    /// Another server.
    ServerNid,
    /// A file in the content repository.
    MediaNid,
    /// The keys of a key backup.
    BackupNid,
    /// A pusher.
    PusherNid,
}

/// A place in the log: every change has one, in the order of the commits.
pub type Pos = i64;

/// Packs integers into few bytes: zigzag differences as variable-length integers.
#[must_use]
pub fn pack(numbers: impl IntoIterator<Item = i64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut before = 0_i64;
    for number in numbers {
        let difference = number.wrapping_sub(before);
        let mut rest = ((difference << 1) ^ (difference >> 63)).cast_unsigned();
        while rest >= 0x80 {
            bytes.push(low_bits(rest) | 0x80);
            rest >>= 7;
        }
        bytes.push(low_bits(rest));
        before = number;
    }
    bytes
}

fn low_bits(number: u64) -> u8 {
    number.to_le_bytes()[0] & 0x7f
}

/// The reverse of [`pack`].
#[must_use]
pub fn unpack(bytes: &[u8]) -> Vec<i64> {
    let mut numbers = Vec::new();
    let (mut before, mut rest, mut shift) = (0_i64, 0_u64, 0_u32);
    for byte in bytes {
        rest |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        shift += 7;
        if byte & 0x80 == 0 {
            let difference = (rest >> 1).cast_signed() ^ -(rest & 1).cast_signed();
            before = before.wrapping_add(difference);
            numbers.push(before);
            (rest, shift) = (0, 0);
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pack_and_unpack_are_inverse() {
        for list in [
            vec![],
            vec![0],
            vec![5, 4, 3],
            vec![i64::MIN, i64::MAX, -1, 1 << 40],
        ] {
            assert_eq!(unpack(&pack(list.iter().copied())), list);
        }
        assert!(pack([1_000_000, 1_000_001, 999_990]).len() <= 6);
    }
}
