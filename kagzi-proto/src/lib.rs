//! The kagzi.v1 gRPC protocol: the .proto files and the code generated from them.
