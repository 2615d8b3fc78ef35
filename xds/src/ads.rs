//! ads
