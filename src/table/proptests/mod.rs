//! Properties of the table and of plans, on random states.

mod staging;
mod states;
mod universe;
