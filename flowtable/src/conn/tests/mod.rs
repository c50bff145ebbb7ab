//! Tests of the connection table.
