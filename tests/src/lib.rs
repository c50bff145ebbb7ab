//! The main job as a list of checks: two tenants on two nodes, real packets over `AF_XDP`.
//!
//! [`World`] builds the scene with the tools a user has (netctl, weir-cni); each [`Check`] looks at
//! one promise of the product. `make demo` runs them for people, the end-to-end tests run them for
//! CI, and one test per check breaks what it looks at and sees it fail. [`Pace`] measures attaching.

mod check;
mod checks;
mod pace;
mod world;

pub use check::Check;
pub use checks::ALL;
pub use pace::{Filled, Pace, Size, Times, missed, ms, resident_kb};
pub use world::World;
