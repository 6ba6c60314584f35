//go:build linux && amd64

package main

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// auxVDSO is AT_SYSINFO_EHDR: where the kernel has mapped its functions.
const auxVDSO = 33

// vdso is what the kernel maps into each process of this machine's native kind.
type vdso struct {
	image []byte
	// Offsets in image of the functions that tell the time.
	clockGettime, gettimeofday, time uint64
}

// shiftAt is where the code below keeps its shift, in seconds, from its beginning.
const shiftAt = 0x80

// code replaces clock_gettime and has the two others behind it. Each asks the kernel by a system
// call and adds the shift.
var code = []byte{
	// clock_gettime(edi clock, rsi *timespec)
	0xb8, 0xe4, 0x00, 0x00, 0x00, // 00 mov eax, 228
	0x0f, 0x05, // 05 syscall
	0x85, 0xc0, // 07 test eax, eax
	0x75, 0x18, // 09 jnz 23
	0x85, 0xff, // 0b test edi, edi: CLOCK_REALTIME
	0x74, 0x0a, // 0d jz 19
	0x83, 0xff, 0x05, // 0f cmp edi, 5: CLOCK_REALTIME_COARSE
	0x74, 0x05, // 12 jz 19
	0x83, 0xff, 0x0b, // 14 cmp edi, 11: CLOCK_TAI
	0x75, 0x0a, // 17 jnz 23
	0x48, 0x8b, 0x0d, 0x60, 0x00, 0x00, 0x00, // 19 mov rcx, [80]
	0x48, 0x01, 0x0e, // 20 add [rsi], rcx
	0xc3, // 23 ret
	// gettimeofday(rdi *timeval, rsi *timezone)
	0xb8, 0x60, 0x00, 0x00, 0x00, // 24 mov eax, 96
	0x0f, 0x05, // 29 syscall
	0x48, 0x85, 0xff, // 2b test rdi, rdi
	0x74, 0x0a, // 2e jz 3a
	0x48, 0x8b, 0x0d, 0x49, 0x00, 0x00, 0x00, // 30 mov rcx, [80]
	0x48, 0x01, 0x0f, // 37 add [rdi], rcx
	0xc3, // 3a ret
	// time(rdi *time_t)
	0x48, 0x89, 0xfa, // 3b mov rdx, rdi
	0x31, 0xff, // 3e xor edi, edi
	0xb8, 0xc9, 0x00, 0x00, 0x00, // 40 mov eax, 201
	0x0f, 0x05, // 45 syscall
	0x48, 0x03, 0x05, 0x32, 0x00, 0x00, 0x00, // 47 add rax, [80]
	0x48, 0x85, 0xd2, // 4e test rdx, rdx
	0x74, 0x03, // 51 jz 56
	0x48, 0x89, 0x02, // 53 mov [rdx], rax
	0xc3, // 56 ret
}

// Where the second and third function of code begin.
const (
	gettimeofdayAt = 0x24
	timeAt         = 0x3b
)

// readVDSO reads what this process has, which is what all of its kind have.
func readVDSO() (*vdso, error) {
	base, err := mapped(os.Getpid())
	if err != nil {
		return nil, err
	}
	if base == 0 {
		return nil, errors.New("this kernel maps no vDSO, so there is nothing to replace")
	}
	memory, err := os.Open("/proc/self/mem")
	if err != nil {
		return nil, fmt.Errorf("open own memory: %w", err)
	}
	defer memory.Close()
	image := make([]byte, 4*os.Getpagesize())
	n, err := memory.ReadAt(image, int64(base))
	if n == 0 {
		return nil, fmt.Errorf("read vDSO: %w", err)
	}
	v := &vdso{image: image[:n]}
	file, err := elf.NewFile(bytes.NewReader(v.image))
	if err != nil {
		return nil, fmt.Errorf("read vDSO: %w", err)
	}
	symbols, err := file.DynamicSymbols()
	if err != nil {
		return nil, fmt.Errorf("read symbols of vDSO: %w", err)
	}
	for _, s := range symbols {
		switch s.Name {
		case "__vdso_clock_gettime":
			v.clockGettime = s.Value
			if s.Size < shiftAt+16 {
				return nil, fmt.Errorf("clock_gettime of this kernel has %d bytes, too few to put others in its place",
					s.Size)
			}
		case "__vdso_gettimeofday":
			v.gettimeofday = s.Value
		case "__vdso_time":
			v.time = s.Value
		}
	}
	if v.clockGettime == 0 || v.gettimeofday == 0 || v.time == 0 {
		return nil, errors.New("the vDSO of this kernel lacks functions that tell the time")
	}
	// The page it ends in may be mapped for other things.
	v.image = v.image[:v.clockGettime+shiftAt+16]
	return v, nil
}

// mapped returns where a process has its vDSO, 0 if it has none.
func mapped(pid int) (uint64, error) {
	aux, err := os.ReadFile(fmt.Sprintf("/proc/%d/auxv", pid))
	if err != nil {
		return 0, fmt.Errorf("find vDSO: %w", err)
	}
	for ; len(aux) >= 16; aux = aux[16:] {
		if binary.LittleEndian.Uint64(aux) == auxVDSO {
			return binary.LittleEndian.Uint64(aux[8:]), nil
		}
	}
	return 0, nil
}

// replace puts code in the place of the kernel's functions in a process that has just begun a
// program.
func (v *vdso) replace(pid int, seconds int64) error {
	return v.write(pid, func(memory *os.File, base uint64) error {
		have := make([]byte, len(v.image))
		if _, err := memory.ReadAt(have, int64(base)); err != nil {
			return fmt.Errorf("read vDSO: %w", err)
		}
		if !bytes.Equal(have, v.image) {
			return errors.New("its vDSO is another than this process has: programs of 32 bits keep the machine's clock")
		}
		whole := make([]byte, shiftAt+8)
		copy(whole, code)
		binary.LittleEndian.PutUint64(whole[shiftAt:], uint64(seconds))
		for _, w := range []struct {
			at   uint64
			data []byte
		}{
			{v.clockGettime, whole},
			{v.gettimeofday, jump(v.gettimeofday, v.clockGettime+gettimeofdayAt)},
			{v.time, jump(v.time, v.clockGettime+timeAt)},
		} {
			if _, err := memory.WriteAt(w.data, int64(base+w.at)); err != nil {
				return fmt.Errorf("write vDSO: %w", err)
			}
		}
		return nil
	})
}

// jump is the instruction for it.
func jump(from, to uint64) []byte {
	const length = 5
	return binary.LittleEndian.AppendUint32([]byte{0xe9}, uint32(to-from-length))
}

// set changes the shift in a process whose functions are replaced.
func (v *vdso) set(pid int, seconds int64) error {
	return v.write(pid, func(memory *os.File, base uint64) error {
		have := make([]byte, len(code))
		if _, err := memory.ReadAt(have, int64(base+v.clockGettime)); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read vDSO: %w", err)
		}
		if !bytes.Equal(have, code) {
			// Between fork and exec of something that was left alone.
			return nil
		}
		if _, err := memory.WriteAt(binary.LittleEndian.AppendUint64(nil, uint64(seconds)),
			int64(base+v.clockGettime+shiftAt)); err != nil {
			return fmt.Errorf("write vDSO: %w", err)
		}
		return nil
	})
}

// write opens the memory of a process for change. The kernel lets a tracer write where the process
// itself may only read.
func (v *vdso) write(pid int, change func(memory *os.File, base uint64) error) error {
	base, err := mapped(pid)
	if err != nil || base == 0 {
		return err
	}
	memory, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open memory: %w", err)
	}
	defer memory.Close()
	return change(memory, base)
}
