# One request, stopped at three places: gdb -q -batch -x docs/trace/one.gdb target/x86_64-unknown-none/release/pinfold
set pagination off
set width 0
target remote localhost:1234
hbreak kernel::dev::slots::Slots::request<kernel::dev::virtio::Ring>
continue
echo \n--- begun\n
backtrace 8
delete
hbreak kernel::dev::slots::{impl#2}::interrupt<kernel::dev::virtio::Ring>
continue
echo \n--- interrupt\n
backtrace 5
monitor info virtio-queue-status /machine/peripheral-anon/device[1]/virtio-backend 0
monitor info virtio-queue-element /machine/peripheral-anon/device[1]/virtio-backend 0 0
delete
hbreak mm::gup::pinned::unpin_each<kernel::arch::hw::X86, true>
continue
echo \n--- unpinned\n
backtrace 8
delete
detach
