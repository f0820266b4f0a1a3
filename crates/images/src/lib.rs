//! Container images: pull, import, unpack to layers, garbage collection.
