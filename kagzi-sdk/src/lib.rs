//! What an application adds to be durable: Client, Worker and Context, over gRPC or in process.

pub mod wire;
