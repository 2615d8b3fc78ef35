//! evaluate
#[derive(Debug)]
pub struct Decision;
#[derive(Debug)]
pub struct Request;
#[derive(Debug)]
pub enum Verdict {}
pub fn evaluate() {}
