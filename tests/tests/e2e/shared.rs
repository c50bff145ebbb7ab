//! One scene for several sentences: built by the first that runs, gone after the last.
//!
//! A sentence that fails takes the scene with it, since nobody knows what state it is in; the next
//! one builds it anew. Every sentence leaves behind what it found.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};

use crate::Test;

/// A name and what it does with the scene.
pub(crate) type Sentence<S> = (&'static str, fn(&mut S) -> Result<()>);

/// Tests that share the scene that `build` makes.
pub(crate) fn sharing<S: Send + 'static>(
    build: fn() -> Result<S>,
    sentences: &[Sentence<S>],
) -> Vec<Test> {
    // Every test holds a share and gives it up when it has run: the last one ends the scene.
    let scene: Arc<Mutex<Option<S>>> = Arc::default();
    let test = |&(name, sentence): &Sentence<S>| -> Test {
        let scene = Arc::clone(&scene);
        let run = move || {
            let mut kept = scene.lock().unwrap_or_else(PoisonError::into_inner);
            let mut state = match kept.take() {
                Some(state) => state,
                None => build().context("building the scene")?,
            };
            sentence(&mut state)?;
            *kept = Some(state);
            Ok(())
        };
        (name.to_owned(), Box::new(run))
    };
    sentences.iter().map(test).collect()
}
