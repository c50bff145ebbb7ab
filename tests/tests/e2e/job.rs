//! The main job: every check of the demo passes on a sound system, and each one fails on a system
//! in which what it looks at is broken.

use anyhow::{Context as _, Result, ensure};
use kit::Purpose;
use tests::{ALL, World};

use crate::Test;

pub(crate) fn tests() -> Vec<Test> {
    let mut tests: Vec<Test> = vec![("the_main_job_passes_every_check".into(), whole_job)];
    // A plain function per check, so that a test is no more than its name and its code.
    let broken: [fn() -> Result<()>; 8] = [
        || fails_when_broken(1),
        || fails_when_broken(2),
        || fails_when_broken(3),
        || fails_when_broken(4),
        || fails_when_broken(5),
        || fails_when_broken(6),
        || fails_when_broken(7),
        || fails_when_broken(8),
    ];
    let name = |at: usize| format!("check_{}_fails_when_what_it_looks_at_is_broken", at + 1);
    tests.extend(broken.into_iter().enumerate().map(|(at, test)| (name(at), test)));
    tests
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
