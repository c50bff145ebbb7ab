//! What a check is.

use anyhow::Result;

use crate::world::World;

/// One promise, looked at.
#[derive(Debug, Clone, Copy)]
pub struct Check {
    /// Its number in the demo.
    pub number: u32,
    /// What is promised.
    pub title: &'static str,
    /// Looks; the text says what was seen.
    pub run: fn(&mut World) -> Result<String>,
    /// Breaks what is looked at, so that [`Check::run`] has to fail.
    pub sabotage: fn(&mut World) -> Result<()>,
}
