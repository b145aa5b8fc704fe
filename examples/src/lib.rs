//! Programs that people start from.
