//! Random names and ids from the operating system's generator (ring).
//!
//! Not here: secrets; this broker makes none of its own.

use ring::rand::{SecureRandom, SystemRandom};

/// The operating system gave no random bytes; nothing that needs a name can go on.
#[derive(Debug)]
pub(crate) struct NoRandomness;

impl std::fmt::Display for NoRandomness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the operating system gave no random bytes")
    }
}

/// `N` random bytes.
fn bytes<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(bytes)
}

/// Lower-case hexadecimal of `bytes`.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name of a new instance's bucket and user. 64 random bits: no two will meet.
pub(crate) fn instance_name(prefix: &str) -> Result<String, NoRandomness> {
    Ok(format!("{prefix}-u{}", hex16()?))
}

/// Sixteen random hexadecimal digits.
pub(crate) fn hex16() -> Result<String, NoRandomness> {
    Ok(hex(&bytes::<8>()?))
}

/// A random (version 4) UUID in its usual text form (RFC 9562, section 5.4).
pub(crate) fn uuid() -> Result<String, NoRandomness> {
    let mut id = u128::from_be_bytes(bytes::<16>()?);
    id = (id & !(0xf << 76)) | (0x4 << 76); // version
    id = (id & !(0x3 << 62)) | (0x2 << 62); // variant
    let digits = format!("{id:032x}");
    let (first, rest) = digits.split_at(8);
    let (second, rest) = rest.split_at(4);
    let (third, rest) = rest.split_at(4);
    let (fourth, last) = rest.split_at(4);
    Ok(format!("{first}-{second}-{third}-{fourth}-{last}"))
}

/// A number below `bound` (0 when `bound` is 0); for spreading retries, slightly biased.
pub(crate) fn below(bound: u64) -> u64 {
    let drawn = bytes::<8>().map(u64::from_be_bytes).unwrap_or(bound / 2);
    drawn.checked_rem(bound).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_version_four_and_differ() {
        let (one, other) = (uuid().unwrap(), uuid().unwrap());
        assert_ne!(one, other);
        let parts: Vec<&str> = one.split('-').collect();
        assert_eq!(parts.iter().map(|it| it.len()).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
        assert!(parts[2].starts_with('4') && "89ab".contains(&parts[3][..1]), "{one}");
    }

    #[test]
    fn hex16_is_sixteen_hex_digits() {
        let text = hex16().unwrap();
        assert!(text.len() == 16 && text.bytes().all(|it| it.is_ascii_hexdigit()), "{text}");
        assert_eq!(below(0), 0);
        assert!(below(5) < 5);
    }
}
