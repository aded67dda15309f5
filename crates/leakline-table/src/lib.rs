//! The file that an agent writes while a server runs, and that the command reads: its layout, its writer, its reader.
