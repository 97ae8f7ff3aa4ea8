//! Sizes on the command line.

/// A number of bytes, or of kibi-, mebi- or gibibytes with K, M or G behind it.
///
/// # Errors
///
/// What is wrong with the text.
pub fn parse(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| "wanted a size such as 512M or 1G".to_owned())?;
    let bytes = number.checked_mul(1 << shift).ok_or("the size does not fit 64 bits")?;
    if bytes == 0 || bytes % STEP != 0 {
        return Err(format!("{bytes} bytes: wanted a multiple of 2M, and not 0"));
    }
    Ok(bytes)
}

/// All sizes are multiples of this.
pub const STEP: u64 = 2 << 20;

/// The size as the length of a slice.
///
/// # Panics
///
/// On machines whose addresses are shorter than 64 bits, if the size does not fit them.
pub fn length(bytes: u64) -> usize {
    usize::try_from(bytes).expect("addresses have 64 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_suffixes() {
        assert_eq!(parse("1G"), Ok(1 << 30));
        assert_eq!(parse("4096K"), Ok(4 << 20));
        assert_eq!(parse("2097152"), Ok(2 << 20));
    }

    #[test]
    fn what_is_not_a_size_is_refused() {
        for text in ["", "G", "1T", "0", "1M", "-1M", "99999999999G"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
