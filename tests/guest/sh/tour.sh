# A tour of busybox: forks, pipes, text tools, an archive, jobs, and a static Rust program with eight threads.
# $1: that Rust program. Prints the same on Linux and on Pinfold.
set -u
rm -rf /tmp/tour && mkdir -p /tmp/tour/in/deep && cd /tmp/tour || exit 1
echo "== words"
for i in 1 2 3 4 5 6 7 8 9 10 11 12; do echo "line $i of $((i * i))"; done > in/a
sort -rn -k 2 in/a | head -n 4
sed -n 's/line \([0-9]*\) of \(.*\)/\2 <- \1/p' in/a | tail -n 3
awk '{ s += $4 } END { printf "sum %d, mean %.2f\n", s, s / NR }' in/a
wc -l < in/a; wc -c in/a
cut -d ' ' -f 2 in/a | tr '\n' ',' ; echo
grep -c 'line 1' in/a
echo "== pipes"
seq 1 2000 | awk '$1 % 7 == 0' | sort -n | uniq | tail -n 2
yes pinfold | head -n 1000 | md5sum
dd if=/dev/zero bs=4096 count=300 2>/dev/null | tr '\0' 'x' | wc -c
( echo one; ( echo two; exit 3 ); echo "status $?" ) | cat
echo "== processes"
( exit 7 ); echo "exit $?"
sh -c 'kill -9 $$'; echo "killed $?"
for i in 1 2 3 4 5 6 7 8; do ( n=0; while [ $n -lt 50 ]; do n=$((n + 1)); done; echo "job $i $n" > job.$i ) & done
wait
cat job.1 job.8; ls job.* | wc -l
# Whether the shell also says "Terminated" depends on when it hears of the death.
{ sleep 5 & p=$!; kill $p; wait $p; echo "sleeper $?"; } 2>/dev/null
trap 'echo trapped' USR1; kill -USR1 $$; trap - USR1
x=$(echo inner | sed s/inner/outer/); echo "substituted $x"
i=0; while [ $i -lt 40 ]; do /bin/true 2>/dev/null || true; i=$((i + 1)); done; echo "forty children"
echo "== files"
cp in/a in/deep/b; mv in/deep/b in/deep/c; ln -s ../a in/deep/l
mkdir -p many; for i in 1 2 3 4 5; do echo $i > many/f$i; done; rm many/f3; ls many
tar -cf t.tar in && mkdir out && tar -xf t.tar -C out && cmp in/a out/in/deep/c && echo "tar: same"
tar -tf t.tar | sort
cat out/in/deep/l | md5sum
find in -type f | sort
head -c 100000 /dev/zero | gzip | gunzip | wc -c
diff in/a out/in/a && echo "no difference"
test -x /bin/sh && echo "sh is there"
stat -c '%s %F' in/a; stat -c %F in
echo "== rust"
"$1" count 30000 | sed 's/^/it says: /'
"$1" > rust.out; echo "status $?"; wc -l < rust.out; md5sum < rust.out
echo "== here"
cat <<END | sort
b $((6 * 7))
a $(basename /x/y/z)
END
cd / && rm -r /tmp/tour && ls /tmp/tour 2>/dev/null || echo gone
