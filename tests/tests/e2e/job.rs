//! The main job: every check of the demo passes on a sound system, and each one fails on a system
//! in which what it looks at is broken.

use anyhow::{Context as _, Result, ensure};
use kit::Purpose;
use tests::{ALL, World};

use crate::Test;

pub(crate) fn tests() -> Vec<Test> {
    let whole: Test = ("the_main_job_passes_every_check".into(), Box::new(whole_job));
    let broken = ALL.iter().map(|check| -> Test {
        let number = check.number;
        let name = format!("check_{number}_fails_when_what_it_looks_at_is_broken");
        (name, Box::new(move || fails_when_broken(number)))
    });
    [whole].into_iter().chain(broken).collect()
}

fn whole_job() -> Result<()> {
    let mut world = World::build(Purpose::Test, |_| ())?;
    for check in ALL {
        let seen = (check.run)(&mut world);
        seen.with_context(|| format!("check {}: {}", check.number, check.title))?;
    }
    Ok(())
}

fn fails_when_broken(number: u32) -> Result<()> {
    let check = ALL.iter().find(|check| check.number == number).context("no such check")?;
    let mut world = World::build(Purpose::Test, |_| ())?;
    (check.sabotage)(&mut world).context("breaking it")?;
    let seen = (check.run)(&mut world);
    ensure!(seen.is_err(), "check {number} still passes: {}", seen.unwrap_or_default());
    Ok(())
}
