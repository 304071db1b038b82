//! The MMU on hand-built page tables: every paging mode, error codes, EPT, invalidation, cores in threads.

mod assist;
mod code;
mod ept;
mod invalidation;
mod machine;
mod paging;
mod random;
mod special;
