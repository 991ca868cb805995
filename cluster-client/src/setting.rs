//! What every process refuses in its configuration before it starts.

/// A limit or a period with which nothing would ever happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is 0, and nothing would ever be done: write 1 or more, or leave it to its default")]
pub struct ZeroSetting(pub &'static str);

pub fn check_not_zero(settings: &[(&'static str, u64)]) -> Result<(), ZeroSetting> {
    let zero = settings.iter().find(|(_, value)| *value == 0);
    zero.map_or(Ok(()), |(name, _)| Err(ZeroSetting(name)))
}
