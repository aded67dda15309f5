//! Embeds the agent into a released command: `scripts/dist` builds the agent and names its file in
//! `LEAKLINE_EMBED_AGENT`. Without it the command looks for an agent beside itself. The cases are embedded always.
fn main() {
    println!("cargo:rustc-check-cfg=cfg(agent_embedded)");
    println!("cargo:rerun-if-changed=../../cases");
    println!("cargo:rerun-if-env-changed=LEAKLINE_EMBED_AGENT");
    if let Ok(agent) = std::env::var("LEAKLINE_EMBED_AGENT") {
        println!("cargo:rerun-if-changed={agent}");
        println!("cargo:rustc-cfg=agent_embedded");
    }
}
